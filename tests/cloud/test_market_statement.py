"""Statements: what a participant can check itself, and what a check finds."""

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_cloud.cli import settle
from wattmesh_cloud.live import SiteLive
from wattmesh_cloud.market.journal import Journal
from wattmesh_cloud.market.replica import Replica
from wattmesh_cloud.market.risk import SiteState
from wattmesh_cloud.market.statement import AMOUNTS, audit, check, read_csv, replayed, statement_rows, to_csv
from wattmesh_cloud.market.telemetry import site_state

SLOT = 900 * NS_PER_S
T = 2_000 * SLOT


@pytest.fixture
def journal(tmp_path, make_config, make_order):
    """A market's journal with trades, readings, a substitute that was corrected, and demand response."""
    from wattmesh_a2a.codec import message_to_json
    from wattmesh_a2a.messages import OrderPlace

    config = make_config(mechanism="continuous", grid_fee=0.02, levy=0.01, imbalance_fee=0.03)
    path = tmp_path / "market.journal"
    opened = Journal(path)
    opened.append_now({"what": "rules", "config": config.model_dump(mode="json", by_alias=True)})
    for number, (who, side, quantity, price) in enumerate(
        [("bob", "sell", 300, 1500), ("cem", "sell", 200, 1700), ("ann", "buy", 400, 2000)]
    ):
        order = make_order(who, side, quantity, price, slot_ns=T, name=f"o{number}")
        batch = message_to_json(OrderPlace(participant_id=who, area_id="area-1", orders=(order,)))
        opened.append_now({"what": "place", "now": T - 3600 * NS_PER_S, "batch": batch})
    opened.append_now({"what": "clear", "slot": T})
    for who, metered in (("ann", 500), ("bob", None), ("cem", -50), ("bob", -280)):
        row = {"what": "settle", "slot": T, "participant": who, "metered": metered, "substituted": metered is None}
        opened.append_now(row)
    opened.append_now({"what": "flexibility", "event": "dr", "participant": "ann", "units": 777, "slot": T})
    opened.close()
    return path


@pytest.fixture
def statement(journal, tmp_path):
    path = tmp_path / "ann.csv"
    assert settle(["statement", str(journal), "ann", "--csv", str(path), "--html", str(tmp_path / "ann.html")]) == 0
    return path


def test_a_statement_is_what_the_ledger_says(journal):
    engine = replayed(journal).engine
    for name in ("ann", "bob", "cem"):
        assert statement_rows(engine, name)[-1]["total_units"] == -engine.ledger.balances[name]
    assert audit(engine) == []


def test_a_right_statement_is_found_right(statement, journal, tmp_path, capsys):
    readings = tmp_path / "meter.csv"
    readings.write_text(f"slot_start_ns,import_wh,export_wh\n{T},510,10\n")
    assert settle(["verify", str(statement), "--readings", str(readings), "--journal", str(journal)]) == 0
    assert "right" in capsys.readouterr().out
    readings.write_text(f"slot_start_ns,import_wh,export_wh\n{T},510,11\n")
    assert settle(["verify", str(statement), "--readings", str(readings)]) == 1
    assert "the reading says 499" in capsys.readouterr().out
    page = (tmp_path / "ann.html").read_text()
    assert "Statement of ann" in page
    assert "<td>500</td>" in page


def test_every_amount_that_is_changed_is_found(statement):
    rows = read_csv(statement)
    assert check(rows) == []
    for index, row in enumerate(rows):
        for name in row:
            if name in {
                "quantity_wh",
                "price_ticks",
                "committed_wh",
                "metered_wh",
                "total_units",
                "import_ticks",
                *AMOUNTS,
            }:
                changed = [dict(one) for one in rows]
                changed[index][name] += 1
                assert check(changed), (index, name)
    for index in range(len(rows)):
        assert check(rows[:index] + rows[index + 1 :]), f"row {index} is missing"
        assert check([*rows[:index], rows[index], *rows[index:]]) or rows[index]["kind"] == "total"


def test_a_journal_is_verified_as_a_whole_without_its_lock(journal, capsys):
    writer = Journal(journal)
    assert settle(["verify", str(journal)]) == 0
    out = capsys.readouterr().out
    assert "ledger sums to 0" in out
    writer.close()
    content = bytearray(journal.read_bytes())
    content[200] ^= 1
    journal.write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged at byte 0"):
        settle(["verify", str(journal)])


def test_files_that_are_no_statements(tmp_path, journal, make_config):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match="no statement"):
        read_csv(path)
    good = to_csv(statement_rows(replayed(journal).engine, "ann"))
    path.write_text(good.replace("500", "5oo"))
    with pytest.raises(ConfigurationError, match="line"):
        read_csv(path)
    with pytest.raises(ConfigurationError, match="no participant 'eve'"):
        statement_rows(Replica(make_config()).engine, "eve")
    with pytest.raises(ConfigurationError, match="there is no such journal"):
        replayed(tmp_path / "none")


def test_what_a_site_could_deliver():
    announcement = {
        "assets": [
            {"id": "pv", "kind": "inverter", "rated_power_w": 5000.0, "rated_energy_wh": None},
            {"id": "bat", "kind": "battery", "rated_power_w": 3000.0, "rated_energy_wh": 10_000.0},
        ]
    }
    live = SiteLive(time_ns=7, columns=("bat.soc_percent",), values=[40.0])
    wanted = SiteState(time_ns=7, output_w=8000, generation_w=5000, stored_wh=4000)
    assert site_state(announcement, live) == wanted
    assert site_state(announcement, SiteLive(time_ns=7)) is None
