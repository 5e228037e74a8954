"""A backup of a running cloud, everything destroyed, and all of it back; what is not whole is refused."""

import json
import shutil
import threading
from array import array

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.telemetry import ColumnBatch
from wattmesh_cloud import cli
from wattmesh_cloud.backup import backup, restore, verify
from wattmesh_cloud.lake import Lake
from wattmesh_cloud.market.journal import Journal
from wattmesh_cloud.store.base import Item, Table
from wattmesh_cloud.store.dead import DeadLetter, DeadLetters
from wattmesh_cloud.store.sqlite import SqliteStore

CLOUD = """\
version: 1
org: demo
state: state
broker: mqtt://127.0.0.1:1883
keys: keys
market:
  area: area-1
  time_zone: Europe/Berlin
  tariff: {feed_in_price: 0.05, default_price: 0.21}
  participants: [{id: home-1, import_limit_w: 12000, export_limit_w: 8000, credit_limit: 200.0}]
"""


def batch(sequence, start_ns):
    return ColumnBatch(
        site_id="home-1", session="s", stream="points", sequence=sequence, columns=("meter.active_power_w",),
        times_ns=array("q", [start_ns + (sequence * 60 + row) * NS_PER_S for row in range(60)]),
        values=(array("d", [float(row) for row in range(60)]),), qualities=(bytes(60),),
    )  # fmt: skip


@pytest.fixture
def state(tmp_path, midnight_ns):
    """A cloud's folder with something of everything, still open."""
    folder = tmp_path / "state"
    store = SqliteStore(folder / "store.sqlite")
    store.append([batch(sequence, midnight_ns) for sequence in range(1440)], {})
    store.put(Table.TRADE_DATA, [Item(partition="area-1#trades", time_ns=midnight_ns, id="t1", data={"price": 1})])
    Lake(folder / "lake").catch_up(store, midnight_ns + 2 * 86_400 * NS_PER_S)
    dead = DeadLetters(folder / "dead_frames.sqlite")
    letter = DeadLetter(
        id=0, site="home-1\x1b[2J", stream="points", sequence=3, kind="frame", reason="no", first_ns=1, last_ns=1,
        times=1, payload=b"\x01",
    )  # fmt: skip
    dead.keep([letter])
    journal = Journal(folder / "market-area-1.journal")
    journal.append_now({"kind": "order", "price": 3})
    journal.close()
    (folder / "report.json").write_text("{}")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "home-1.key").write_text("secret")
    (tmp_path / "cloud.yaml").write_text(CLOUD)
    yield folder, store
    store.close()
    dead.close()


def entries_of(path):
    journal = Journal(path)
    try:
        return list(journal.entries())
    finally:
        journal.close()


def contents(folder, midnight_ns):
    store = SqliteStore(folder / "store.sqlite")
    lake = Lake(folder / "lake")
    try:
        return (
            store.sequences("home-1", "points"),
            store.query(Table.TRADE_DATA, "area-1#trades", 0, 2**62),
            store.samples("home-1", ["meter.active_power_w"], midnight_ns, midnight_ns + 10**14, step_s=900),
            lake.entries(),
            lake.query("SELECT count(*), sum(value) FROM samples"),
            entries_of(folder / "market-area-1.journal"),
        )
    finally:
        store.close()


def test_everything_destroyed_comes_back(state, tmp_path, midnight_ns, capsys):
    folder, store = state
    before = contents(folder, midnight_ns)
    assert cli.backup([str(tmp_path / "cloud.yaml"), str(tmp_path / "saved")]) == 0
    store.close()
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "keys")
    assert cli.restore([str(tmp_path / "saved"), "--check"]) == 0
    (tmp_path / "cloud.yaml").unlink()
    shutil.copy(tmp_path / "saved" / "configuration.yaml", tmp_path / "cloud.yaml")
    assert cli.restore([str(tmp_path / "saved"), str(tmp_path / "cloud.yaml")]) == 0
    assert contents(folder, midnight_ns) == before
    assert before[0] == (1440, 86_400)
    assert "secret" not in "".join(
        path.read_text(errors="replace") for path in (tmp_path / "saved").rglob("*") if path.is_file()
    )
    assert "keys and certificates are not in it" in capsys.readouterr().out


def test_a_backup_while_others_write_is_consistent(state, tmp_path, midnight_ns):
    folder, store = state
    ended = threading.Event()

    def write():
        sequence = 1440
        while not ended.is_set():
            moment = midnight_ns + sequence * 60 * NS_PER_S
            rows = [Item(partition="p", time_ns=moment, id="x", data={})]
            store.append([batch(sequence, midnight_ns)], {Table.GRID_METRICS: rows})
            sequence += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            backup(folder, tmp_path / f"saved-{number}")
    finally:
        ended.set()
        writer.join()
    for number in range(3):
        restore(tmp_path / f"saved-{number}", tmp_path / f"again-{number}")
        copy = SqliteStore(tmp_path / f"again-{number}" / "store.sqlite")
        batches, records = copy.sequences("home-1", "points")
        assert records == batches * 60
        assert len(copy.query(Table.GRID_METRICS, "p", 0, 2**62, limit=10_000)) == batches - 1440
        copy.close()


def test_nothing_is_overwritten(state, tmp_path):
    folder, _ = state
    backup(folder, tmp_path / "saved")
    with pytest.raises(ConfigurationError, match="there already"):
        backup(folder, tmp_path / "saved")
    with pytest.raises(ConfigurationError, match="not empty"):
        restore(tmp_path / "saved", folder)
    with pytest.raises(ConfigurationError, match="no state of a cloud"):
        backup(tmp_path / "keys", tmp_path / "other")


def change(saved, what):
    index = json.loads((saved / "backup.json").read_text())
    if what == "missing":
        (saved / "state" / "dead_frames.sqlite").unlink()
    elif what == "changed":
        with (saved / "state" / "store.sqlite").open("r+b") as file:
            file.write(b"x")
    elif what == "more":
        (saved / "state" / "more").write_text("x")
    elif what == "no index":
        (saved / "backup.json").unlink()
    elif what == "broken index":
        (saved / "backup.json").write_text("[]")
    elif what == "version":
        (saved / "backup.json").write_text(json.dumps({**index, "version": 2}))
    elif what == "link":
        (saved / "state" / "dead_frames.sqlite").unlink()
        (saved / "state" / "dead_frames.sqlite").symlink_to("/etc/hostname")


@pytest.mark.parametrize("what", ["missing", "changed", "more", "no index", "broken index", "version", "link"])
def test_a_backup_that_is_not_what_was_made_is_refused_and_nothing_restored(state, tmp_path, what):
    folder, _ = state
    backup(folder, tmp_path / "saved")
    change(tmp_path / "saved", what)
    with pytest.raises(ConfigurationError):
        verify(tmp_path / "saved")
    with pytest.raises(ConfigurationError):
        restore(tmp_path / "saved", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_dead_letters_by_command(state, tmp_path, capsys):
    file = str(tmp_path / "cloud.yaml")
    assert cli.ingest(["dead", file]) == 0
    line = capsys.readouterr().out
    assert "points 3" in line
    assert "\x1b" not in line, "a topic's control characters do not reach the terminal"
    assert cli.ingest(["show", file, "--id", "1"]) == 0
    assert capsys.readouterr().out == "01\n"
    assert cli.ingest(["replay", file, "--id", "1"]) == 0
    assert "1 letters" in capsys.readouterr().out
    assert cli.ingest(["forget", file, "--id", "1"]) == 0
    assert cli.ingest(["dead", file]) == 0
    assert capsys.readouterr().out == ""
