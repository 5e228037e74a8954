"""A day of samples goes to Parquet and comes back by SQL as it was stored; nothing else can be done by SQL."""

import math
from array import array

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, encode_records
from wattmesh_cloud.lake import FolderStorage, Lake, QueryError, QueryLimits
from wattmesh_cloud.store.base import Retention
from wattmesh_cloud.store.sqlite import SqliteStore

DAY_NS = 86_400 * NS_PER_S
NAMES = ["meter.active_power_w", "battery.soc_percent"]
ONE = "samples/site=home-1/day=2023-11-15/part.parquet"
TWO = "samples/site=home-1/day=2023-11-16/part.parquet"


@pytest.fixture(params=["folder", "s3"])
def storage(request, tmp_path, monkeypatch):
    """The same contract over a folder and a bucket."""
    if request.param == "folder":
        yield FolderStorage(tmp_path / "lake")
        return
    moto = pytest.importorskip("moto")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "eu-central-1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with moto.mock_aws():
        import boto3
        from wattmesh_cloud.lake.s3 import S3Storage

        client = boto3.client("s3", region_name="eu-central-1")
        client.create_bucket(Bucket="lake", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        yield S3Storage("lake", "production/", client=client)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "lake"


@pytest.fixture
def lake(folder):
    return Lake(folder)


@pytest.fixture
def filled(store, midnight_ns):
    """Hourly samples of a day and of the hour after it."""

    def fill(site="home-1", add=0.0, sequence=1, hours=25):
        times = [midnight_ns + hour * 3600 * NS_PER_S for hour in range(hours)]
        batch = ColumnBatch(
            site_id=site,
            session="s",
            stream="points",
            sequence=sequence,
            columns=tuple(NAMES),
            times_ns=array("q", times),
            values=(
                array("d", [hour + add for hour in range(hours)]),
                array("d", [math.nan if hour == 3 else 50.0 for hour in range(hours)]),
            ),
            qualities=(bytes(hours), bytes(2 if hour == 3 else 0 for hour in range(hours))),
        )
        store.append([batch], {})

    return fill


def test_a_day_round_trips_with_nan_and_quality(lake, store, filled, midnight_ns, folder):
    filled()
    assert lake.take_day(store, "home-1", midnight_ns + 7 * 3600 * NS_PER_S) == 48
    assert lake.files() == {ONE: 48}
    entry = lake.entries()[ONE]
    assert (entry.first_ns, entry.last_ns) == (midnight_ns, midnight_ns + 23 * 3600 * NS_PER_S)
    rows = lake.query("SELECT time_ns, value, quality, site FROM samples WHERE point LIKE '%power_w' ORDER BY time_ns")
    assert rows == [(midnight_ns + hour * 3600 * NS_PER_S, float(hour), 0, "home-1") for hour in range(24)]
    ((value, quality),) = lake.query(
        f"SELECT value, quality FROM samples WHERE point LIKE '%soc%' AND time_ns = {midnight_ns + 3 * 3600 * NS_PER_S}"
    )
    assert math.isnan(value)
    assert quality == 2
    assert not list(folder.rglob("*.draft"))


def test_missed_days_of_all_sites_are_caught_up(storage, store, filled, midnight_ns):
    filled()
    filled("home-2", add=100.0)
    lake = Lake(storage)
    assert lake.catch_up(store, midnight_ns + DAY_NS - 1) == 0, "the day is not over"
    assert lake.catch_up(store, midnight_ns + 9 * DAY_NS) == 4, "the cloud was down for a week"
    assert lake.catch_up(store, midnight_ns + 9 * DAY_NS) == 0
    assert lake.files() == {
        f"samples/site={site}/day=2023-11-{day}/part.parquet": rows
        for site in ("home-1", "home-2")
        for day, rows in ((15, 48), (16, 2))
    }
    assert lake.verify() == []
    assert sorted(storage.names("samples/")) == sorted(lake.files())


def test_late_samples_join_the_file_and_nothing_is_there_twice(storage, store, filled, midnight_ns, tmp_path):
    filled()
    lake = Lake(storage)
    lake.catch_up(store, midnight_ns + 3 * DAY_NS)
    filled(add=0.5, sequence=2, hours=2)
    lake.catch_up(store, midnight_ns + 3 * DAY_NS)
    # Hours 0 and 1 have two different values of the meter, and the same state of charge again.
    assert lake.files() == {ONE: 50, TWO: 2}
    assert lake.take_day(store, "home-1", midnight_ns) == 50, "done again, it is the same"


def test_what_the_store_forgot_stays_in_the_lake(lake, store, filled, midnight_ns):
    filled()
    lake.catch_up(store, midnight_ns + 3 * DAY_NS)
    before = lake.query("SELECT time_ns, point, value, quality FROM samples ORDER BY ALL")
    store.maintain(midnight_ns + 30 * DAY_NS)
    assert list(store.raw("home-1", 0, 2**62)) == []
    filled(add=9.0, sequence=2, hours=1)
    lake.catch_up(store, midnight_ns + 30 * DAY_NS)
    after = lake.query("SELECT time_ns, point, value, quality FROM samples ORDER BY ALL")
    assert len(after) == len(before) + 1, "one other value; the state of charge is the same"


def test_top_by_site(lake, store, filled, midnight_ns):
    filled()
    filled("home-2", add=100.0)
    lake.catch_up(store, midnight_ns + 3 * DAY_NS)
    top = lake.query("SELECT site, max(value) FROM samples WHERE point LIKE '%power_w' GROUP BY site ORDER BY site")
    assert top == [("home-1", 24.0), ("home-2", 124.0)]


def test_a_file_that_is_not_in_the_manifest_is_not_read_until_it_is_rebuilt(lake, store, filled, midnight_ns, folder):
    filled()
    lake.catch_up(store, midnight_ns + 3 * DAY_NS)
    (folder / "samples/site=home-1/day=2023-11-17").mkdir()
    (folder / "samples/site=home-1/day=2023-11-17/part.parquet").write_bytes(b"half a file")
    assert lake.query("SELECT count(*) FROM samples") == [(50,)]
    (folder / "manifest.json").write_text("{broken")
    with pytest.raises(UnavailableError, match="damaged"):
        lake.files()
    assert lake.rebuild() == 2
    assert lake.files() == {ONE: 48, TWO: 2}


def test_damage_is_found(lake, store, filled, midnight_ns, folder):
    filled()
    lake.catch_up(store, midnight_ns + 3 * DAY_NS)
    (folder / TWO).unlink()
    (folder / ONE).write_bytes((folder / ONE).read_bytes()[:-1])
    assert lake.verify() == [ONE, TWO]


def test_an_empty_lake_can_be_asked(lake):
    assert lake.query("SELECT count(*), max(value) FROM samples") == [(0, None)]


@pytest.mark.parametrize(
    "sql",
    [
        "COPY samples TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{folder}/out.parquet' (FORMAT parquet)",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('{folder}/manifest.json')",
        "SELECT * FROM read_text('{folder}/../secret')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY samples TO 'x'",
        "ATTACH '{folder}/x.db'",
        "SET enable_external_access = true",
        "SET memory_limit = '10GB'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW samples",
        "PRAGMA database_list",
        "EXPORT DATABASE '{folder}/x'",
        "DELETE FROM samples",
        "SELECT nonsense FROM samples",
        "",
        "not sql at all",
        "SELECT * FROM range(10001)",
    ],
)
def test_nothing_but_one_bounded_select_over_the_lake(lake, store, filled, midnight_ns, folder, tmp_path, sql):
    filled()
    lake.catch_up(store, midnight_ns + 3 * DAY_NS)
    (tmp_path / "secret").write_text("secret")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(QueryError) as refused:
        lake.query(sql.format(folder=folder))
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_query_ends_when_its_time_is_over(lake):
    endless = "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range * b.range = 7"
    with pytest.raises(QueryError, match=r"more than 0\.05 s"):
        lake.query(endless, QueryLimits(seconds=0.05))


def test_a_bucket_is_left_to_athena(store, storage):
    if isinstance(storage, FolderStorage):
        assert Lake(storage).query("SELECT 1") == [(1,)]
        return
    with pytest.raises(QueryError, match="Athena"):
        Lake(storage).query("SELECT 1")


def test_names_do_not_lead_out_of_the_folder(tmp_path):
    with pytest.raises(ValueError, match="outside"):
        FolderStorage(tmp_path / "lake").write("../x", b"")


def test_storage_contract(storage):
    assert storage.read("a/b") is None
    storage.write("a/b", b"1")
    storage.write("a/b", b"2")
    storage.write("c.parquet", b"3")
    assert storage.read("a/b") == b"2"
    assert list(storage.names("a/")) == ["a/b"]
    storage.delete("a/b")
    storage.delete("a/b")
    assert list(storage.names()) == ["c.parquet"]


@pytest.fixture
def told(store, midnight_ns):
    """Records that came some seconds after midnight."""

    def tell(sequence, second, *lines, site="home-1"):
        batch = RecordBatch(site_id=site, session="s", stream="records", sequence=sequence, lines=lines)
        came = midnight_ns + second * NS_PER_S
        store.append_frames([((site, "records", sequence, came, came, len(lines), encode_records(batch)), [])])

    return tell


def test_records_go_to_the_lake_by_the_day_in_which_they_came(storage, store, told, midnight_ns):
    lake = Lake(storage)
    told(1, 10, b'{"type":"a"}', b'{"type":"b"}')
    told(2, 86_399, b'{"type":"c"}')
    told(3, 86_400, b'{"type":"next day"}')
    told(1, 5, b'{"type":"x"}', site="home-2")
    assert lake.catch_up(store, midnight_ns + DAY_NS - 1) == 0
    assert lake.catch_up(store, midnight_ns + DAY_NS) == 2
    assert lake.files() == {
        "records/site=home-1/day=2023-11-15/part.parquet": 3,
        "records/site=home-2/day=2023-11-15/part.parquet": 1,
    }
    assert lake.catch_up(store, midnight_ns + DAY_NS) == 0
    told(4, 20, b'{"type":"late"}')  # a clock that was set back
    assert lake.catch_up(store, midnight_ns + DAY_NS) == 1
    assert lake.files()["records/site=home-1/day=2023-11-15/part.parquet"] == 4
    assert lake.verify() == []
    before = lake.entries()
    assert lake.rebuild() == 2
    assert lake.entries() == before


def test_records_are_read_by_sql(lake, store, told, filled, midnight_ns):
    assert lake.query("SELECT count(*) FROM records") == [(0,)]
    told(1, 10, b'{"type":"wattmesh.Alarm","data":{"id":"a1"}}', b'{"type":"other"}')
    filled()
    lake.catch_up(store, midnight_ns + 2 * DAY_NS)
    rows = lake.query(
        "SELECT site, received_ns, json FROM (SELECT site, received_ns, record AS json FROM records) WHERE json LIKE '%Alarm%'"
    )
    assert rows == [("home-1", midnight_ns + 10 * NS_PER_S, '{"type":"wattmesh.Alarm","data":{"id":"a1"}}')]
    assert lake.query("SELECT count(*) FROM samples") == [(50,)], "each view has its own files"


def test_records_leave_the_store_when_the_lake_has_them_and_come_in_no_second_time(lake, tmp_path, midnight_ns):
    store = SqliteStore(tmp_path / "short.sqlite", Retention(frames_s=86_400, lateness_s=0))

    def tell(sequence, day):
        batch = RecordBatch(site_id="home-1", session="s", stream="records", sequence=sequence, lines=(b"{}",))
        came = midnight_ns + day * DAY_NS
        return store.append_frames([(("home-1", "records", sequence, came, came, 1, encode_records(batch)), [])])

    for day in range(5):
        tell(day, day)
    now = midnight_ns + 5 * DAY_NS
    store.maintain(now)
    assert len(list(store.raw_records("home-1", 0, now))) == 5, "the lake has nothing yet"
    lake.catch_up(store, now)
    store.maintain(now)
    assert [batch.sequence for _, batch in store.raw_records("home-1", 0, now)] == [4]
    assert store.sequences("home-1", "records") == (5, 5)
    assert tell(2, 5) == [False], "known for ever"
    assert store.gaps("home-1", "records") == []
    assert sum(lake.files().values()) == 5
    store.close()
