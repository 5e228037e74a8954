"""Live events: what changed, to whom it belongs, and a viewer that is too slow."""

import asyncio
import json
from array import array

import pytest
from wattmesh_a2a.telemetry import ColumnBatch
from wattmesh_cloud.access.model import Principal, Role
from wattmesh_cloud.api.live import LiveHub
from wattmesh_cloud.frequency_live import FrequencyLive
from wattmesh_cloud.homeassistant import discovery, state

NAMES = ("meter.active_power_w", "meter.energy_import_wh")


@pytest.fixture
def frequency():
    return FrequencyLive()


@pytest.fixture
async def hub(view, frequency):
    made = LiveHub(view, frequency)
    yield made
    if made._task is not None:
        made._task.cancel()
        await asyncio.gather(made._task, return_exceptions=True)


@pytest.fixture
def person():
    def make(tenant="fleet", sites=None):
        return Principal(name="x", kind="token", role=Role.VIEWER, tenant=tenant, sites=sites)

    return make


@pytest.fixture
def reading(view, clock):
    count = iter(range(1, 1000))

    def take(site, watts):
        number = next(count)
        batch = ColumnBatch(
            site_id=site, session="s", stream="points", sequence=number, columns=NAMES,
            times_ns=array("q", [clock.utc_ns() + number]), values=(array("d", [watts]), array("d", [1.0])),
            qualities=(b"\0", b"\0"),
        )  # fmt: skip
        view.live.on_columns(batch)

    return take


def drained(viewer):
    found = []
    while not viewer.queue.empty():
        name, data = viewer.queue.get_nowait().decode().strip().split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_first_everything_then_what_changed(hub, person, reading):
    viewer = hub.join(person(), frozenset({"fleet"}))
    hub.step(slow=False)
    ((name, first),) = drained(viewer)
    assert (name, first["all"], [one["id"] for one in first["sites"]]) == ("fleet", True, ["ann", "bob", "cem"])
    reading("bob", 500.0)
    hub.step(slow=False)
    ((_, second),) = drained(viewer)
    assert [(one["id"], one["flows"]["grid_w"]) for one in second["sites"]] == [("bob", 500.0)]
    hub.step(slow=False)
    assert drained(viewer) == []


async def test_a_tenant_sees_its_own(hub, person, reading, frequency):
    viewer = hub.join(person("acme", frozenset({"ann"})), frozenset({"fleet", "frequency"}))
    hub.step(slow=True)
    drained(viewer)
    reading("bob", 500.0)
    reading("ann", 300.0)
    frequency.add("bob", [(1, 60.0, 0.0)])
    frequency.add("ann", [(1, 59.9, 0.0)])
    hub.step(slow=True)
    events = dict(drained(viewer))
    assert [one["id"] for one in events["fleet"]["sites"]] == ["ann"]
    assert events["frequency"] == {"ann": [[1, 59.9, 0.0]]}


async def test_a_slow_viewer_gets_everything_anew_and_keeps_nobody_waiting(hub, person, reading):
    slow, fast = (hub.join(person(), frozenset({"fleet"})) for _ in range(2))
    for number in range(50):
        reading("ann", float(number))
        hub.step(slow=False)
        drained(fast)
    hub.step(slow=False)
    events = drained(slow)
    assert len(events) <= 32
    reading("ann", 7.0)
    hub.step(slow=False)
    last = (events + drained(slow))[-1][1]
    newest = {one["id"]: one["flows"]["grid_w"] for one in last["sites"]}
    assert newest["ann"] in {49.0, 7.0}


async def test_one_site_with_its_points(hub, person, reading):
    viewer = hub.join(person(), frozenset({"site:ann"}))
    hub.step(slow=False)
    reading("ann", 42.0)
    drained(viewer)
    hub.step(slow=False)
    ((name, data),) = drained(viewer)
    assert (name, data["points"]["meter.active_power_w"]) == ("site", 42.0)
    assert hub.sites_wanted() == {"ann"}


def test_frequency_rings_are_bounded_and_repetitions_left_out(frequency):
    frequency.add("ann", [(number, 60.0, 0.0) for number in range(5000)])
    assert len(frequency.recent("ann")) == 1200
    frequency.add("ann", [(10, 50.0, 0.0)])
    assert frequency.recent("ann")[-1][0] == 4999
    seen = {}
    assert len(frequency.since(seen)["ann"]) == 1200
    assert frequency.since(seen) == {}
    for number in range(300):
        frequency.add(f"s{number}", [(1, 60.0, None)])
    assert len(frequency.since({})) == 200


def test_home_assistant_is_told_of_a_site(view, reading):
    reading("ann", 1500.0)
    config = discovery("ann", "wattmesh/ann")
    assert config["components"]["grid_w"]["unit_of_measurement"] == "W"
    assert len({one["unique_id"] for one in config["components"].values()}) == len(config["components"])
    values = state(view, "ann")
    assert values["grid_w"] == 1500.0
    assert values["problem"] == "never seen"
