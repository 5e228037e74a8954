"""Figures under one name everywhere; traces from an order to the ledger and from a measurement to the store."""

import json
from array import array
from types import SimpleNamespace

import pytest
from wattmesh_a2a import tracing
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.messages import OrderBatch
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.telemetry import ColumnBatch, encode_columns
from wattmesh_a2a.transports.memory import MemoryBroker, MemoryTransport
from wattmesh_cloud.emf import EmfLog
from wattmesh_cloud.ingest import Ingest, IngestLimits
from wattmesh_cloud.market.service import MarketService

TEXT = """\
# HELP wattmesh_ingest_records_total Since the process began.
# TYPE wattmesh_ingest_records_total counter
wattmesh_ingest_records_total {records}
wattmesh_market_halted 0
wattmesh_site_online{{site="home-1"}} 1
wattmesh_site_online{{site="a \\"b\\""}} 0
wattmesh_site_alarms{{site="home-1",severity="critical"}} 2
"""


def test_cloudwatch_gets_the_names_of_prometheus(tmp_path):
    out = EmfLog(tmp_path / "figures.emf", "WattMesh/test")
    out.write(TEXT.format(records=100), 1_700_000_000_123_000_000)
    out.write(TEXT.format(records=130), 1_700_000_060_123_000_000)
    out.write(TEXT.format(records=5), 1_700_000_120_123_000_000)
    events = [json.loads(line) for line in (tmp_path / "figures.emf").read_text().splitlines()]
    assert len(events) == 3 * 4, "one a set of labels"
    plain = [one for one in events if one["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [[]]]
    assert [one["wattmesh_ingest_records_total"] for one in plain] == [100, 30, 5], "growth; a restart begins anew"
    assert plain[0]["_aws"]["Timestamp"] == 1_700_000_000_123
    for one in events:
        (directive,) = one["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == "WattMesh/test"
        for metric in directive["Metrics"]:
            assert isinstance(one[metric["Name"]], float)
        for names in directive["Dimensions"]:
            assert all(isinstance(one[name], str) for name in names)
    assert {one.get("site") for one in events} == {None, "home-1", 'a "b"'}


def test_a_full_file_is_moved_aside(tmp_path, monkeypatch):
    monkeypatch.setattr("wattmesh_cloud.emf._MOST_BYTES", 1500)
    out = EmfLog(tmp_path / "figures.emf", "n")
    for minute in range(10):
        out.write(TEXT.format(records=minute), minute)
    assert (tmp_path / "figures.emf").stat().st_size <= 1500
    assert (tmp_path / "figures.emf.1").stat().st_size <= 1500


def test_the_functions_metrics_have_the_same_names(monkeypatch, capsys):
    pytest.importorskip("boto3")
    from wattmesh_cloud.tools import lambdas

    monkeypatch.setenv("WATTMESH_METRICS", "WattMesh/test")
    monkeypatch.setattr(lambdas, "context", lambda: SimpleNamespace(store=None))
    lambdas.telemetry({"Records": [{"messageId": "1", "body": "nothing"}]}, None)
    event = json.loads(capsys.readouterr().out)
    names = {one["Name"] for one in event["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    assert names == {f"wattmesh_ingest_{name}_total" for name in ("batches", "records", "duplicates", "invalid")}
    assert event["wattmesh_ingest_invalid_total"] == 1


@pytest.fixture
def spans():
    """What was recorded."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from wattmesh_cloud.traces import OtelSpans

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    recorder = OtelSpans(provider)
    tracing.record_with(recorder)
    yield exporter.get_finished_spans
    tracing.record_with(None)
    recorder.close()


async def test_from_an_order_to_the_ledger(
    spans, make_config, make_order, make_interval, store, clock, tmp_path, midnight_ns, background
):
    """A home's order by the broker: its trace goes through the journal; the booking of its slot is linked with it."""
    keys, broker = KeyRing({"ann": b"k" * 32, "bob": b"b" * 32}), MemoryBroker()
    there = Address("demo", "cloud", "market-supervisor")
    messenger = Delivery(MemoryTransport(broker), Address("demo", "cloud", "ingest"), clock, keys=keys, serve=[there])
    market = MarketService(make_config(), store, messenger, clock, tmp_path, "demo")
    market.register()
    await messenger.start()
    slot = midnight_ns + 3600 * NS_PER_S
    home = Delivery(MemoryTransport(broker), Address("demo", "ann", "gateway"), clock, keys=keys)
    await home.start()
    order = make_order("ann", "buy", 1000, 20, slot_ns=slot)
    batch = OrderBatch(participant_id="ann", area_id="area-1", slot_start_ns=slot, orders=(order,))
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    with tracing.within(trace):
        await home.request(there, batch, expires_ns=clock.utc_ns() + 60 * NS_PER_S, timeout_s=10)
    await market.submit("bob", slot, (make_order("bob", "sell", 1000, 10, slot_ns=slot),))
    background(market.run())
    await clock.advance(3600 + 900)
    for who in ("ann", "bob", "cem"):
        market.on_record(who, make_interval(who, slot))
    await clock.advance(10)
    (handled,) = [one for one in spans() if one.name.startswith("handle ")]
    assert f"{handled.context.trace_id:032x}" == "ab" * 16, "the home's own trace"
    steps = [one for one in spans() if one.name in {"market.journal", "market.apply"} and one.parent is not None]
    assert {one.parent.span_id for one in steps} == {handled.context.span_id}
    assert len(steps) == 2
    booked = [one for one in spans() if one.name == "ledger.book"]
    assert {one.attributes["participant"] for one in booked} == {"ann", "bob", "cem"}
    (ann,) = [one for one in booked if one.attributes["participant"] == "ann"]
    assert ann.attributes["slot_ns"] == slot
    assert [f"{link.context.trace_id:032x}" for link in ann.links] == ["ab" * 16], "the booking names its order's trace"
    market.close()
    await home.stop()
    await messenger.stop()


async def test_from_a_measurement_to_the_store(spans, store, messenger, clock, background):
    ingest = Ingest(store, messenger, clock, "demo", limits=IngestLimits(linger_s=0.0, ack_every_s=0.0))
    ingest.register()
    background(ingest.run())
    measured = clock.utc_ns() - 7 * NS_PER_S
    batch = ColumnBatch(
        site_id="home-1", session="s", stream="points", sequence=3, columns=("meter.active_power_w",),
        times_ns=array("q", [measured]), values=(array("d", [1.0]),), qualities=(b"\0",),
    )  # fmt: skip
    messenger.telemetry("home-1", "points", encode_columns(batch))
    await ingest.settle(10)
    (stored,) = spans()
    assert f"{stored.context.trace_id:032x}" == tracing.of_batch("home-1", "points", 3).split("-")[1], (
        "the gateway's too"
    )
    assert dict(stored.attributes) == {"site": "home-1", "sequence": 3, "age_s": 7.0}


def test_nobody_records_and_nothing_is_spent():
    with tracing.within("00-" + "1" * 32 + "-" + "2" * 16 + "-01"), tracing.span("x", a=1):
        assert tracing.current().endswith("2" * 16 + "-01"), "no span of its own"


def test_a_span_that_fails_says_so(spans):
    with pytest.raises(KeyError), tracing.span("broken"):
        raise KeyError("secret")
    (found,) = spans()
    assert found.status.status_code.name == "ERROR"
    assert found.status.description == "KeyError"
