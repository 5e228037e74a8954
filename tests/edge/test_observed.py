"""What a gateway shows to whoever looks: frequency while watched, traces thinned, devices with their budgets."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import InvalidMessageError, UnauthorisedError
from wattmesh_a2a.observing import DevicesQuery, EventTraceQuery, FrequencySamples, FrequencyWatch
from wattmesh_edge.observed import Observed, _thinned, trace_report


class Messenger:
    def __init__(self):
        self.handlers, self.emitted = {}, []

    def on_request(self, kind, handler, **_):
        self.handlers[kind] = handler

    async def emit(self, message, **_):
        self.emitted.append(message)


def envelope(message, unit="cloud"):
    return SimpleNamespace(data=message, source=Address("demo", unit, "ingest"))


@pytest.fixture
def messenger():
    return Messenger()


@pytest.fixture
def driver():
    controls = {"active_power_w": SimpleNamespace(writes_per_day=100), "mode": SimpleNamespace(writes_per_day=None)}
    return SimpleNamespace(
        counters=Counter(polls=10, failed_polls=1, writes=3), template=SimpleNamespace(id="some_battery", controls=controls),
        state=SimpleNamespace(name="READY"), qualities=bytes([0, 0, 2]), asset=SimpleNamespace(points=[1, 2, 3]),
    )  # fmt: skip


@pytest.fixture
def make(messenger, driver, tmp_path):
    def build(reflex, **more):
        tasks = []
        one = Observed(
            "home-1", {"battery": driver}, lambda: reflex, tmp_path, messenger, tasks.append,
            flash=lambda name: {"active_power_w": (20_000, 7)}, utc_ns=lambda: 20_000 * 86_400 * 10**9, **more,
        )  # fmt: skip
        one.register()
        return one, tasks

    return build


async def test_samples_are_sent_for_the_lease_and_no_longer(make, messenger):
    now = [0]

    async def pause(seconds):
        now[0] += round(seconds * 1000)

    answers = iter(["valid"] * 30 + ["gap"] * 1000)
    reflex = SimpleNamespace(
        snapshot=lambda: SimpleNamespace(cause=next(answers), frequency_hz=59.98, rocof_hz_per_s=0.01)
    )
    _, tasks = make(reflex, real_ms=lambda: now[0], pause=pause)
    watch = messenger.handlers[FrequencyWatch]
    await watch(envelope(FrequencyWatch(lease_s=2)))
    await watch(envelope(FrequencyWatch(lease_s=2)))
    (sending,) = tasks
    await sending
    assert all(isinstance(one, FrequencySamples) for one in messenger.emitted)
    times = [time for one in messenger.emitted for time in one.times_ms]
    assert len(times) == 40, "20 a second for 2 s"
    assert times == sorted(set(times))
    hertz = [value for one in messenger.emitted for value in one.frequency_hz]
    assert hertz == [59.98] * 30 + [None] * 10, "what is not valid is none"


async def test_a_site_without_a_reflex_says_so(make, messenger):
    _, tasks = make(None)
    answer = await messenger.handlers[FrequencyWatch](envelope(FrequencyWatch(lease_s=2)))
    assert (answer.detail, tasks) == ("no frequency is measured here", [])


@pytest.mark.parametrize("message", [FrequencyWatch(lease_s=5), EventTraceQuery(event_id="x"), DevicesQuery()])
async def test_only_the_cloud_may_ask(make, messenger, message):
    make(None)
    with pytest.raises(UnauthorisedError):
        await messenger.handlers[type(message)](envelope(message, "home-2"))


@pytest.mark.parametrize("lease_s", [0, -1, 61])
async def test_a_lease_has_bounds(make, messenger, lease_s):
    make(SimpleNamespace())
    with pytest.raises(InvalidMessageError):
        await messenger.handlers[FrequencyWatch](envelope(FrequencyWatch(lease_s=lease_s)))


async def test_devices_with_quality_and_todays_flash_writes(make, messenger):
    make(None)
    (device,) = (await messenger.handlers[DevicesQuery](envelope(DevicesQuery()))).devices
    assert (device.state, device.good, device.points, device.writes) == ("ready", 2, 3, 3)
    (budget,) = device.budgets
    assert (budget.control, budget.used, budget.allowed) == ("active_power_w", 7, 100)


@pytest.mark.parametrize("name", ["none", "../../etc/passwd", ""])
async def test_a_trace_that_is_not_there_is_empty(make, messenger, name):
    make(None)
    report = await messenger.handlers[EventTraceQuery](envelope(EventTraceQuery(event_id=name)))
    assert report.times_ms == ()


def test_a_broken_trace_is_empty(tmp_path):
    path = Path(tmp_path / "x.trace.gz")
    path.write_bytes(b"not gzip")
    assert trace_report("x", path).times_ms == ()


def test_thinning_keeps_the_extremes_and_the_order():
    rows = [{"time_ns": at, "frequency_hz": 60.0 - (at == 777) * 2 + (at == 4321)} for at in range(10_000)]
    kept = _thinned(rows)
    assert len(kept) <= 800
    assert {777, 4321} <= {row["time_ns"] for row in kept}
    assert [row["time_ns"] for row in kept] == sorted(row["time_ns"] for row in kept)
