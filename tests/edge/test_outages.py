"""The site without the cloud, with a broker that comes and goes, and with each device dying in turn: in virtual time."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from wattmesh_a2a.codec import record_line
from wattmesh_a2a.control import Failed
from wattmesh_a2a.envelope import CLOUD_UNIT
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.messages import TelemetryAck
from wattmesh_a2a.telemetry import ColumnBatch, decode
from wattmesh_edge.agents.base import SLOT_NS, Outlook
from wattmesh_edge.agents.consumer import ConsumerAgent
from wattmesh_edge.agents.planner import Storage
from wattmesh_edge.agents.producer import ProducerAgent
from wattmesh_edge.config import load_site
from wattmesh_edge.control import ControlCycle
from wattmesh_edge.image import ImageMaker
from wattmesh_edge.limits import BatteryLimits, SiteLimits
from wattmesh_edge.outbox import Outbox
from wattmesh_edge.uplink import Uplink

EXAMPLE = Path(__file__).parents[2] / "firmware_configs" / "sites" / "home-1.yaml"
PERIOD_S = 60
DAY = 86_400 // PERIOD_S


class Cloud:
    """A messenger whose other side is the ingest; the broker between them can be away, and lose what is on its way."""

    def __init__(self, rng):
        self.there, self.loses, self.rng = True, 0.0, rng
        self.batches, self.doubled, self._handlers = {}, 0, {}

    def on_request(self, kind, handler, **_options):
        self._handlers[kind] = handler

    async def send_telemetry(self, stream, frame, *, backlog=False):
        if not self.there:
            raise UnavailableError("no broker")
        if self.rng.random() < self.loses:
            return
        batch = decode(frame)
        key = stream, batch.sequence
        self.doubled += key in self.batches
        self.batches[key] = frame
        if self.rng.random() >= self.loses:  # else the acknowledgement is lost, and the batch comes again
            ack = TelemetryAck(stream=stream, sequences=(batch.sequence,))
            await self._handlers[TelemetryAck](SimpleNamespace(data=ack, source=SimpleNamespace(unit=CLOUD_UNIT)))

    def rows(self):
        return sum(
            len(batch.times_ns) for frame in self.batches.values() if isinstance(batch := decode(frame), ColumnBatch)
        )


class Site:
    def __init__(self, devices, clock, folder, cloud):
        site = load_site(EXAMPLE)
        storage = Storage(energy_wh=6400, power_w=5000, reserve_wh=320)
        self.outlook = Outlook(tariff=site.tariff, storage=storage, trade=False)
        agents = [
            kind(kind.__name__, "home-1", self.outlook, period_s=PERIOD_S) for kind in (ProducerAgent, ConsumerAgent)
        ]
        self.devices, self.clock, self.cycles, self.soc = devices, clock, 0, 50.0
        columns = [f"{name}.{point.id}" for name, driver in devices.items() for point in driver.asset.points]
        self.outbox = Outbox(folder, "home-1", "s", columns)
        self.now_s = 0.0
        self.uplink = Uplink(self.outbox, cloud, lambda: self.now_s)
        self.control = ControlCycle(
            devices, ImageMaker(devices, "meter", PERIOD_S), agents,
            {"battery": BatteryLimits(rated_power_w=5000, rated_energy_wh=6400, min_soc_percent=5)},
            SiteLimits(import_limit_w=12_000, export_limit_w=8000), clock, period_s=PERIOD_S,
            record=self.record, traded_wh=lambda: 0.0, real_ns=lambda: 0,
        )  # fmt: skip

    def record(self, image, decisions, _outcomes):
        self.outbox.add_row(
            image.time_ns, (d.values for d in self.devices.values()), (d.qualities for d in self.devices.values())
        )
        self.decisions = {one.asset_id: one for one in decisions}
        if self.cycles % 20 == 0:
            self.outbox.add_record(record_line(decisions[0]))
        if image.time_ns // SLOT_NS != self.slot:
            self.slot = image.time_ns // SLOT_NS
            self.outlook.forget_before(image.time_ns)
            self.outlook.plan(image.time_ns, self.soc * 64)

    slot = 0

    async def step(self):
        hour = self.cycles / DAY * 24 % 24
        pv = -max(0.0, 3000.0 * (1 - ((hour - 12) / 6) ** 2)) if 6 < hour < 18 else 0.0
        power = self.devices["battery"].written[-1][1] if self.devices["battery"].written else 0.0
        self.soc = min(100.0, max(0.0, self.soc + power * PERIOD_S / 3600 / 64))
        self.devices["battery"].set(active_power_w=power, soc_percent=self.soc)
        self.devices["inverter"].set(active_power_w=pv)
        self.devices["meter"].set(active_power_w=600.0 + pv + power)
        self.cycles += 1
        self.now_s += PERIOD_S
        self.clock.set_ns(self.cycles * PERIOD_S * 10**9)
        await self.control.cycle()
        self.devices["battery"].written[:-1] = []
        await self.uplink.pump()


def forecast(quantity, start_ns, wh):
    return Forecast(
        site_id="home-1", quantity=quantity, issued_ns=start_ns, start_ns=start_ns, slot_s=900, levels=(0.5,),
        values=tuple((wh,) for _ in range(48 * 4)), model="m",
    )  # fmt: skip


async def test_three_days_without_the_cloud_cost_no_record_and_no_sense(devices, clock, tmp_path):
    cloud = Cloud(random.Random(1))
    site = Site(devices, clock, tmp_path, cloud)
    start = clock.utc_ns() - clock.utc_ns() % SLOT_NS
    site.outlook.forecasts = {"load_wh": forecast("load_wh", start, 150.0), "pv_wh": forecast("pv_wh", start, 200.0)}
    await site.step()
    cloud.there = False
    followed = []
    for _ in range(3 * DAY):
        await site.step()
        if not followed or followed[-1] != site.outlook.source:
            followed.append(site.outlook.source)
        assert abs(site.decisions["battery"].target_w) <= 5000
    assert followed == ["plan", "self-consumption"], "the last plan, then what needs none"
    assert site.control.counts["cycles"] == 3 * DAY + 1
    waiting = site.outbox.waiting()
    assert waiting >= 3 * DAY // 10
    cloud.there = True
    rounds = 0
    while site.outbox.waiting():
        await site.uplink.pump()
        rounds += 1
    assert rounds <= waiting // 4 + 2, "a few at a time: control comes first"
    site.outbox.seal()
    await site.uplink.pump()
    assert cloud.rows() == 3 * DAY + 1
    assert cloud.doubled == 0


async def test_with_its_own_record_the_site_follows_the_tariff_when_the_plan_is_over(devices, clock, tmp_path):
    cloud = Cloud(random.Random(1))
    site = Site(devices, clock, tmp_path, cloud)
    site.outlook.profile = dict.fromkeys(range(96), (150.0, 100.0))
    await site.step()
    assert site.outlook.source == "tariff"


async def test_a_broker_that_flaps_and_loses_costs_nothing(devices, clock, tmp_path):
    rng = random.Random(5)
    cloud = Cloud(rng)
    cloud.loses = 0.2
    site = Site(devices, clock, tmp_path, cloud)
    for _ in range(DAY):
        if rng.random() < 0.3:
            cloud.there = not cloud.there
        await site.step()
    cloud.there, cloud.loses = True, 0.0
    site.outbox.seal()
    for _ in range(400):
        site.now_s += 10
        await site.uplink.pump()
    assert site.outbox.waiting() == 0
    assert cloud.rows() == DAY
    assert cloud.doubled > 0, "what was sent again was the same batch, by its number"


@pytest.mark.parametrize("victim", ["meter", "battery", "inverter"])
async def test_each_device_dies_and_the_others_go_on(devices, clock, tmp_path, victim):
    site = Site(devices, clock, tmp_path, Cloud(random.Random(2)))
    for _ in range(30):
        await site.step()
    before = abs(site.decisions["battery"].target_w)
    devices[victim].alive = False
    if victim == "battery":
        devices["battery"].outcome = Failed(reason="gone", retryable=True)
    for _ in range(10):
        await site.step()
        assert abs(site.decisions["battery"].target_w) <= before + 1 or victim == "inverter"
    assert site.control.counts["cycles"] == 40
    if victim != "inverter":
        assert site.decisions["battery"].target_w == 0
    devices[victim].alive, devices["battery"].outcome = True, None
    for _ in range(3):
        await site.step()
    assert abs(devices["meter"].values[0]) < 700, "and comes back"
