"""A disk that is full or broken costs records, and neither control nor planning nor an orderly end."""

import logging
from pathlib import Path

import pytest
from wattmesh_a2a.control import Decision
from wattmesh_a2a.signing import generate_key
from wattmesh_edge.agents.base import SLOT_NS
from wattmesh_edge.config import load_site
from wattmesh_edge.gateway import Gateway
from wattmesh_edge.image import BatteryImage, SiteImage, Value

EXAMPLE = Path(__file__).parents[2] / "firmware_configs" / "sites" / "home-1.yaml"
BEGIN = 1_700_000_100 * 10**9 - 1_700_000_100 * 10**9 % SLOT_NS


@pytest.fixture
async def gateway(tmp_path, clock):
    clock.utc_offset_ns = BEGIN
    file = tmp_path / "home-1.yaml"
    file.write_text(
        EXAMPLE.read_text().split("frequency:")[0] + "messaging:" + EXAMPLE.read_text().split("messaging:")[1]
    )
    (tmp_path / "keys").mkdir()
    generate_key(tmp_path / "keys" / "home-1.key")
    one = Gateway(load_site(file), clock)
    one._spawn = lambda work: work.close()
    yield one
    await one.messenger.stop()
    one._db.close()


def cycle(gateway, time_ns, target=-500.0):
    image = SiteImage(
        time_ns=time_ns, monotonic_ns=time_ns, grid_power_w=Value(value=800.0, quality=0), pv_power_w=0.0,
        batteries={"battery": BatteryImage(active_power_w=0.0, soc_percent=50.0)}, frequency_hz=60.0,
    )  # fmt: skip
    decision = Decision(
        asset_id="battery", time_ns=time_ns, target_w=target, decided_by="test", limited_by=None, requested_w=target,
        remaining_w=0.0,
    )  # fmt: skip
    gateway._end_of_cycle(image, [decision], {"battery": "Applied"})


def measured(gateway):
    gateway.outbox.seal()
    return gateway.outbox.counters().get("measured.points", 0)


async def test_while_nothing_can_be_written_the_site_plans_and_feeds_its_watchdog(gateway, caplog, monkeypatch):
    fed = []
    monkeypatch.setattr(gateway._service, "healthy", fed.append)
    gateway.outlook.profile = dict.fromkeys(range(96), (200.0, 50.0))
    cycle(gateway, BEGIN)
    assert gateway.outlook.value.start_ns == BEGIN
    before = measured(gateway)
    append = gateway.outbox._append

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gateway.outbox, "_append", full)
    gateway._db.execute("PRAGMA query_only=1")
    with caplog.at_level(logging.WARNING):
        for second in range(1, 2000):
            cycle(gateway, BEGIN + second * 10**9, target=-500.0 - second)
    assert len(fed) == 2000
    assert gateway.outlook.value.start_ns == BEGIN + 2 * SLOT_NS, "two quarter hours later it plans as ever"
    assert gateway.counts["record_failures"] > 2000
    said = [record for record in caplog.records if "control goes on" in record.getMessage()]
    assert len(said) == 1, "said once"
    caplog.clear()
    monkeypatch.setattr(gateway.outbox, "_append", append)
    gateway._db.execute("PRAGMA query_only=0")
    with caplog.at_level(logging.WARNING):
        for second in range(2000, 2010):
            cycle(gateway, BEGIN + second * 10**9, target=100.0 * second)
    assert [r.getMessage() for r in caplog.records] == ["records can be kept again"]
    assert measured(gateway) > before
    rows = gateway._db.execute("SELECT COUNT(*) FROM decisions WHERE time_ns >= ?", (BEGIN + 2000 * 10**9,)).fetchone()
    assert rows == (10,)


async def test_what_a_slot_measured_is_told_when_the_disk_takes_the_record_alone(gateway):
    """The database fails and the outbox does not: the energy of the quarter hour still goes to the cloud."""
    for driver in gateway.drivers.values():
        for index in range(len(driver.values)):
            driver.values[index], driver.qualities[index] = 0.0, 0
    gateway._db.execute("PRAGMA query_only=1")

    def fresh(time_ns):
        for driver in gateway.drivers.values():
            for index in range(len(driver.values)):
                driver.known_times_ns[index] = time_ns

    lines = []
    gateway.outbox.add_record = lines.append
    for second in (0, 60, 840, 901, 1801):
        fresh(BEGIN + second * 10**9)
        cycle(gateway, BEGIN + second * 10**9)
    slots = [line for line in lines if b"slot_start_ns" in line]
    assert len(slots) == 2
    gateway._db.execute("PRAGMA query_only=0")
    cycle(gateway, BEGIN + 1802 * 10**9)
    assert (
        gateway._db.execute("SELECT value FROM metering WHERE name = 'slot'").fetchone()[0]
        == (BEGIN + 2 * SLOT_NS) / 1e9
    )


async def test_it_ends_in_order_with_a_disk_that_fails(gateway, monkeypatch, caplog):
    cycle(gateway, BEGIN)
    gateway._db.execute("PRAGMA query_only=1")

    def full(*_):
        raise OSError(28, "No space left on device")

    safe = []

    async def leave():
        safe.append(True)

    monkeypatch.setattr(gateway._devices, "leave", leave)
    monkeypatch.setattr(gateway.outbox, "seal", full)
    await gateway._end()
    assert safe == [True]
    assert caplog.text.count("control goes on") == 1


@pytest.mark.parametrize("years", [-56, 30])
async def test_a_clock_that_jumps_by_years_and_back_costs_no_record_and_no_sense(gateway, years):
    """A gateway without a clock of its own starts in 1970, and a receiver may believe to be in another century."""
    for second in range(30):
        cycle(gateway, BEGIN + second * 10**9, target=100.0 * second)
    away = BEGIN + years * 365 * 86_400 * 10**9
    for second in range(30):
        cycle(gateway, away + second * 10**9, target=100.0 * second)
    for second in range(60, 90):
        cycle(gateway, BEGIN + second * 10**9, target=100.0 * second)
    kept = gateway._db.execute(
        "SELECT COUNT(*) FROM decisions WHERE time_ns BETWEEN ? AND ?", (BEGIN, BEGIN + 30 * 10**9)
    ).fetchone()
    assert kept == (30,), "what was decided before is still there"
    gateway.outbox.seal()
    assert gateway.outbox.bound() == 0
    rows = gateway.outbox.counters()["measured.points"]
    assert rows == 90 * sum(len(driver.values) for driver in gateway.drivers.values())
    assert gateway._planned_slot == BEGIN
    assert gateway.counts["record_failures"] == 0
