"""The grid agent: which hours are a peak, whose offers are taken, and an event's life from notice to payment."""

import asyncio

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.grid import (
    DemandResponseDispatch,
    DemandResponseEvent,
    DemandResponseOffer,
    DemandResponseState,
    FrequencyEvent,
    FrequencyEventKind,
    GridEvent,
    GridStatus,
)
from wattmesh_a2a.messages import Acknowledged, GatewayStatus
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.grid.service import GridService, peak_window
from wattmesh_cloud.ingest import items_of
from wattmesh_cloud.store.base import Table

SLOT = 900 * NS_PER_S
HOUR = 4 * SLOT
SITES = ("ann", "bob", "cem")
PEAK = 12  # the hour of the day at which the fleet's load is high


@pytest.fixture
def forecasts(make_forecast, midnight_ns):
    """Three sites of 250 Wh a quarter hour, 1000 Wh from 12 to 13 o'clock."""
    load = [1000.0 if PEAK * 4 <= number % 96 < PEAK * 4 + 4 else 250.0 for number in range(192)]
    return {
        site: {
            "load_wh": make_forecast(site, "load_wh", midnight_ns, load),
            "pv_wh": make_forecast(site, "pv_wh", midnight_ns, [0.0] * 192),
        }
        for site in SITES
    }


class World:
    """A grid service, its sites' answers and its payments."""

    def __init__(self, store, messenger, clock, tmp_path, forecasts):
        self.store, self.messenger, self.clock, self.folder, self.forecasts = (
            store, messenger, clock, tmp_path, forecasts,
        )  # fmt: skip
        self.paid: list[tuple[str, str, int, int]] = []
        self.prices = {"ann": 1000, "bob": 2000, "cem": 9000}
        messenger.answer = self.answer
        self.service = self.started()

    def started(self):
        async def pay(*what):
            self.paid.append(what)

        config = GridConfig.model_validate({"demand_response": {"price": 0.30}})
        return GridService(
            config, self.store, self.messenger, self.clock, self.folder, "demo",
            forecasts=lambda: self.forecasts, pay=pay,
        )  # fmt: skip

    def answer(self, to, message):
        if isinstance(message, DemandResponseEvent):
            return offer(to.unit, -2000, self.prices[to.unit], event=message.id, baseline=4000)
        return Acknowledged()

    def meter(self, make_interval, start_ns, import_wh, sites=SITES, count=4, **changes):
        """Quarter hours of import, as ingest would hand them on and store them."""
        for site in sites:
            for slot in range(start_ns, start_ns + count * SLOT, SLOT):
                reading = make_interval(site, slot, import_wh=import_wh, **changes)
                for table, item in items_of(site, reading):
                    self.store.put(table, [item])
                self.service.on_record(site, reading)

    def asked(self):
        return self.messenger.sent(DemandResponseEvent)

    def told(self):
        return self.messenger.sent(DemandResponseDispatch)

    def records(self):
        return self.store.query(Table.GRID_METRICS, "fleet#demand-response", 0, 2**62)


@pytest.fixture
def world(store, messenger, clock, tmp_path, forecasts):
    return World(store, messenger, clock, tmp_path, forecasts)


def offer(site, watts, price, *, event="dr-1", baseline=4000):
    return DemandResponseOffer(event_id=event, site_id=site, offered_w=watts, price_ticks=price, baseline_w=baseline)


# -- peak_window


def test_the_window_is_the_hour_of_the_highest_import(forecasts, midnight_ns):
    assert peak_window(forecasts, midnight_ns, HOUR, 90) == (midnight_ns + PEAK * HOUR, 12_000.0)
    assert peak_window(forecasts, midnight_ns + 1, 2 * SLOT, 90) == (midnight_ns + PEAK * HOUR, 12_000.0)


def test_a_window_begins_no_earlier_than_asked(forecasts, midnight_ns):
    start, power = peak_window(forecasts, midnight_ns + PEAK * HOUR + SLOT + 1, HOUR, 50)
    assert start == midnight_ns + PEAK * HOUR + 2 * SLOT, (
        "two quarter hours of the peak are left, and none whole before"
    )
    assert power == 7500.0


def test_pv_counts_against_the_load(make_forecast, midnight_ns):
    load = make_forecast("ann", "load_wh", midnight_ns, [500.0] * 96)
    pv = make_forecast("ann", "pv_wh", midnight_ns, [0.0] * 8 + [400.0] * 88)
    assert peak_window({"ann": {"load_wh": load, "pv_wh": pv}}, midnight_ns, HOUR, 90) == (midnight_ns, 2000.0)


def test_no_window_where_nothing_stands_out_or_the_fleet_exports(make_forecast, midnight_ns):
    spikes = [1000.0 if number % 8 == 0 else 0.0 for number in range(96)]  # no hour of them is near the peak
    load = make_forecast("ann", "load_wh", midnight_ns, spikes)
    assert peak_window({"ann": {"load_wh": load}}, midnight_ns, HOUR, 90) is None
    pv = make_forecast("ann", "pv_wh", midnight_ns, [100.0] * 96)
    assert peak_window({"ann": {"pv_wh": pv}}, midnight_ns, HOUR, 90) is None
    assert peak_window({}, midnight_ns, HOUR, 90) is None


# -- an event's life


async def test_from_notice_to_payment(world, clock, midnight_ns, make_interval, background, settled):
    background(world.service.run())
    await clock.advance(10.5 * 3600)
    (running,) = world.service.running.values()
    assert running.event.start_ns == midnight_ns + PEAK * HOUR
    assert running.event.target_w == -3600, "30 % of 12 kW"
    assert world.asked() == [], "an hour's notice, not more"
    await clock.advance(0.5 * 3600)
    await settled(world.service)
    assert {one.to.unit for one in world.asked()} == set(SITES)
    assert {str(one.source) for one in world.asked()} == {"demo/cloud/grid-optimisation"}
    assert {one.message.site_id: one.message.power_w for one in world.told()} == {"ann": -2000, "bob": -1600}
    await clock.advance(3600)
    world.meter(make_interval, midnight_ns + PEAK * HOUR, 600)  # baseline 1000 Wh a quarter hour: 400 saved
    await clock.advance(3600 + 1799)
    assert world.paid == []
    await clock.advance(60)
    start = midnight_ns + PEAK * HOUR
    name = f"dr-{start // NS_PER_S}"
    assert sorted(world.paid) == [(name, "ann", 1600, 3000, start), (name, "bob", 1600, 3000, start)]
    (row,) = world.records()
    assert (row.data["state"], row.data["delivered_wh"]) == ("settled", {"ann": 1600, "bob": 1600})
    assert world.service.running == {}
    await clock.advance(6 * 3600)
    assert len(world.paid) == 2


async def test_paid_is_what_was_saved_up_to_what_was_asked_and_only_by_whole_readings(
    world, clock, midnight_ns, make_interval, background, settled
):
    start = midnight_ns + PEAK * HOUR
    background(world.service.run())
    await clock.advance(PEAK * 3600)
    await settled(world.service)
    world.meter(make_interval, start, 0, sites=("ann",))  # 1000 Wh saved a quarter hour, 500 dispatched
    world.meter(make_interval, start, 1200, sites=("bob",))  # more than the baseline
    world.service.on_record("ann", make_interval("ann", start + SLOT, import_wh=0, complete=False))
    await clock.advance(2 * 3600)
    delivered = {site: wh for _, site, wh, _, _ in world.paid}
    assert delivered == {"ann": 3 * 500, "bob": 0}


async def test_a_reading_about_another_site_is_not_taken(world, clock, midnight_ns, make_interval):
    world.service.on_record("bob", make_interval("ann", midnight_ns, import_wh=0))
    assert not any(world.service._intervals.values())


async def test_absent_sites_are_waited_for_a_bounded_time_and_the_others_are_told(
    world, clock, background, settled, messenger
):
    messenger.silent = {"ann"}
    background(world.service.run())
    await clock.advance(11 * 3600)
    await settled(world.service)
    assert all(one.timeout_s is not None and one.timeout_s <= 5.0 for one in world.asked())
    assert {one.message.site_id: one.message.power_w for one in world.told()} == {"bob": -2000}


async def test_all_sites_are_asked_at_the_same_time(world, clock, background, settled, messenger):
    gate, asked = asyncio.Event(), []
    real = messenger.request

    async def request(to, message, **options):
        if isinstance(message, DemandResponseEvent):
            asked.append(to.unit)
            await gate.wait()
        return await real(to, message, **options)

    messenger.request = request
    background(world.service.run())
    await clock.advance(11 * 3600)
    assert sorted(asked) == list(SITES), "nobody has answered yet"
    gate.set()
    await settled(world.service)
    assert len(world.told()) == 2


async def test_a_restart_before_the_answers_were_kept_asks_again(world, clock, background, settled, messenger):
    messenger.silent = set(SITES)
    first = background(world.service.run())
    gate = asyncio.Event()
    real = messenger.request

    async def never(to, message, **options):
        await gate.wait()

    messenger.request = never
    await clock.advance(11 * 3600)
    (running,) = world.service.running.values()
    assert running.event.state is DemandResponseState.DISPATCHED
    world.service.response.save()  # another event may have it written at just this moment
    first.cancel()
    for task in world.service._tasks:
        task.cancel()
    messenger.request, messenger.silent = real, set()
    world.service = world.started()
    background(world.service.run())
    await clock.advance(120)
    await settled(world.service)
    assert len(world.asked()) == 3
    assert {one.message.site_id for one in world.told()} == {"ann", "bob"}


async def test_a_restart_after_it_tells_again_and_measures_from_the_store(
    world, clock, background, settled, midnight_ns, make_interval
):
    first = background(world.service.run())
    await clock.advance(11 * 3600)
    await settled(world.service)
    await clock.advance(3600 + 2750)
    world.meter(make_interval, midnight_ns + PEAK * HOUR, 600, count=3)
    first.cancel()
    asked, told = len(world.asked()), len(world.told())
    world.service = world.started()
    background(world.service.run())
    await clock.advance(1000)
    world.meter(make_interval, midnight_ns + PEAK * HOUR + 3 * SLOT, 600, count=1)
    await clock.advance(3600)
    assert len(world.asked()) == asked, "the answers were kept"
    assert [one.message for one in world.told()[told:]] == [one.message for one in world.told()[:told]]
    assert {site: wh for _, site, wh, _, _ in world.paid} == {"ann": 1600, "bob": 1600}


async def test_an_event_whose_time_passed_while_the_cloud_was_away_is_cancelled(world, clock, background, settled):
    first = background(world.service.run())
    await clock.advance(3600)
    assert len(world.service.running) == 1
    first.cancel()
    clock.set_ns(clock.monotonic_ns() + 12 * 3600 * NS_PER_S)
    world.service = world.started()
    background(world.service.run())
    await clock.advance(60)
    await settled(world.service)
    assert world.asked() == []
    assert world.service.running == {}
    assert [row.data["state"] for row in world.records()] == ["cancelled"]


async def test_a_stop_does_not_begin_an_event_and_pays_one_that_has_ended(
    world, clock, background, settled, midnight_ns, make_interval
):
    background(world.service.run())
    await clock.advance(10.999 * 3600)
    clock.set_ns(clock.monotonic_ns() + 10 * NS_PER_S)
    await world.service.finish()
    assert world.asked() == []
    await clock.advance(PEAK * 3600 + 3700 - clock.monotonic_ns() / NS_PER_S)
    await settled(world.service)
    world.meter(make_interval, midnight_ns + PEAK * HOUR, 600)
    await world.service.finish()
    assert len(world.paid) == 2, "over, though not yet the half hour that readings are waited for"


# -- the grid's state


def frequency_event(at_ns):
    return FrequencyEvent(
        id="f1", site_id="ann", kind=FrequencyEventKind.UNDER_FREQUENCY, start_ns=at_ns, end_ns=at_ns + NS_PER_S,
        extreme_frequency_hz=59.1, extreme_rocof_hz_per_s=-0.5, response_w=0.0, detection_to_write_ns=None,
    )  # fmt: skip


async def test_alert_after_a_frequency_event_and_normal_when_it_is_quiet(world, clock, background, settled, messenger):
    background(world.service.run())
    await clock.advance(60)
    world.service.on_record("ann", frequency_event(clock.utc_ns()))
    world.service.on_record("bob", frequency_event(clock.utc_ns()))
    await settled(world.service)
    assert world.service.status is GridStatus.ALERT
    await clock.advance(540)
    assert world.service.status is GridStatus.ALERT
    await clock.advance(120)
    await settled(world.service)
    assert world.service.status is GridStatus.NORMAL
    told = [message for message in messenger.emitted if isinstance(message, GridEvent)]
    assert [message.status for message in told] == [GridStatus.ALERT, GridStatus.NORMAL]
    assert "59.100 Hz at ann" in told[0].reason
    rows = world.store.query(Table.GRID_METRICS, "fleet#grid", 0, 2**62)
    assert [row.data["status"] for row in rows] == ["alert", "normal"]


async def test_the_fleets_frequency_is_the_mean_of_what_sites_say_of_themselves(world, messenger, midnight_ns):
    world.service.register()

    def say(unit, site, hertz):
        status = GatewayStatus(
            site_id=site, session="s", time_ns=1, cycles=1, cycle_overrun_max_ms=0.0, records_measured=0,
            batches_pending=0, commands_sent=0, commands_applied=0, commands_expired=0, frequency_hz=hertz,
            rocof_hz_per_s=None, frequency_events=0, resident_mb=1.0, cpu_s=0.0, plan_source="market",
        )  # fmt: skip
        messenger.events[GatewayStatus](
            Envelope(
                id="1",
                source=Address("demo", unit, "gateway"),
                type="wattmesh.gateway.status.v1",
                time_ns=1,
                session="s",
                sequence=1,
                expires_ns=2,
                data=status,
            )
        )

    assert world.service.snapshot()["frequency_hz"] is None
    say("ann", "ann", 60.0)
    say("bob", "bob", 59.9)
    say("bob", "ann", 10.0)
    assert world.service.snapshot()["frequency_hz"] == pytest.approx(59.95)
