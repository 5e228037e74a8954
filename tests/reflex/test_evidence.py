"""Traces: complete, bounded, replayed bit for bit, and readable as a page."""

import gzip
import json

import pytest
from reflex_kernels import MS, START, S, endpoint, register_kernel, wave, wave_kernel
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_edge.cli import event as command
from wattmesh_edge.reflex import CAUSES, KINDS
from wattmesh_edge.reflex.evidence import AFTER_NS, BEFORE_NS, KEPT, Recorder, load_trace, replay
from wattmesh_edge.reflex.plot import Panel, chart, trace_page

SETTINGS = {
    "watches": {"watches": [{"enter": 59.8}, {"enter": 60.2}, {"enter": 1.0}, {"enter": 0.95}, {"enter": 1.05}]},
}


class Site:
    """A kernel in virtual time with a recorder, collected once a second as the gateway does."""

    def __init__(self, kernel, folder):
        self.kernel, self.folder = kernel, folder
        self.recorder = Recorder(kernel, folder, site_id="s", settings=SETTINGS)
        self.at, self.written = START, []

    def collect(self):
        rows, _ = self.kernel.drain_events()
        names = {row["number"]: f"s-x-{row['number']}" for row in rows}
        self.written += self.recorder.collect(rows, names, lambda moment: moment + 5 * S)

    def register(self, frequencies, volts=230.0):
        for index, hertz in enumerate(frequencies):
            if index % 50 == 0:
                self.kernel.publish(0.0, -5000.0, 5000.0, now=self.at)
                self.collect()
            self.kernel.feed(self.at, None if hertz is None else (hertz + 1e-5 * (index % 2), volts))
            self.at += 20 * MS
        self.collect()

    def waveform(self, frequencies, **more):
        block = wave(frequencies, **more)
        for first in range(0, len(frequencies), 4800):
            self.kernel.publish(0.0, -5000.0, 5000.0, now=self.at)
            piece = block[3 * first : 3 * (first + 4800)]
            self.kernel.feed_wave(piece, self.at)
            self.at += round(len(piece) / 3 / 4800 * S)
            self.collect()


@pytest.fixture
def register_site(tmp_path):
    kernel = register_kernel(nominal_v=230.0, voltage=endpoint(address=2))
    return Site(kernel, tmp_path / "events")


def test_a_trace_holds_the_event_with_what_came_before_and_after(register_site):
    register_site.register([60.0] * 500 + [59.5] * 100 + [60.0] * 200)
    (path,) = register_site.written
    trace = load_trace(path)
    assert KINDS[trace.event["kind"]] == "under_frequency"
    assert trace.utc_ns == trace.monotonic_ns + 5 * S
    outputs = list(trace.output_rows())
    start, end = trace.event["start_ns"], trace.event["end_ns"]
    assert outputs[0]["now_ns"] <= start - BEFORE_NS
    assert end + AFTER_NS - 40 * MS <= outputs[-1]["now_ns"] <= end + AFTER_NS
    kinds = {row["kind"] for row in trace.input_rows()}
    assert {"sample", "limits", "wrote"} <= kinds
    found = replay(trace)
    assert found.identical, found.first_difference
    assert found.outputs == len(outputs)


def test_a_waveforms_trace_replays_bit_for_bit(tmp_path):
    site = Site(wave_kernel(), tmp_path / "events")
    ramp = [60 - i / 4800 for i in range(1920)]
    site.waveform([60.0] * 9600 + ramp + [59.6] * 2400 + ramp[::-1] + [60.0] * 9600, jumps=[(12_000, 15)])
    traces = [load_trace(path) for path in site.written]
    assert {str(KINDS[trace.event["kind"]]) for trace in traces} >= {"under_frequency", "phase_step"}
    for trace in traces:
        found = replay(trace)
        assert found.identical, found.first_difference
        assert found.inputs > 9600


def test_a_changed_input_is_found_by_the_replay(register_site):
    register_site.register([60.0] * 300 + [59.5] * 50 + [60.0] * 200)
    (path,) = register_site.written
    with gzip.open(path, "rt") as file:
        data = json.load(file)
    import base64
    import zlib

    raw = bytearray(zlib.decompress(base64.b64decode(data["inputs"])))
    raw[72 * 40 + 16 + 3] ^= 1  # one bit of one frequency
    data["inputs"] = base64.b64encode(zlib.compress(bytes(raw))).decode()
    with gzip.open(path, "wt") as file:
        json.dump(data, file)
    found = replay(load_trace(path))
    assert not found.identical
    assert "was" in found.first_difference


def test_a_long_event_is_kept_for_its_first_minute(register_site):
    register_site.register([60.0] * 300 + [59.5] * 3300)
    (path,) = register_site.written
    trace = load_trace(path)
    assert trace.event["end_ns"] is None
    assert len(trace.inputs) / 72 < 75 * 52
    register_site.register([60.0] * 200)
    assert len(register_site.written) == 1, "its end gives no second trace"


def test_an_event_under_way_at_the_stop_leaves_its_trace(register_site):
    register_site.register([60.0] * 300 + [59.5] * 50)
    assert register_site.written == []
    register_site.kernel.end(register_site.at)
    rows, _ = register_site.kernel.drain_events()
    (path,) = register_site.recorder.collect(rows, {}, lambda moment: moment, last=True)
    assert load_trace(path).event["end_ns"] is not None
    assert replay(load_trace(path)).identical


def test_a_site_keeps_a_bounded_number_of_traces(register_site):
    register_site.folder.mkdir()
    for index in range(KEPT + 5):
        (register_site.folder / f"old-{index}.trace.gz").write_bytes(b"")
    register_site.register([60.0] * 300 + [59.5] * 50 + [60.0] * 200)
    assert len(list(register_site.folder.glob("*.trace.gz"))) == KEPT
    assert register_site.written[0].exists()


def test_a_folder_that_cannot_be_written_costs_no_more_than_the_trace(register_site, caplog):
    register_site.folder.write_text("a file stands in the way")
    register_site.register([60.0] * 300 + [59.5] * 50 + [60.0] * 200)
    assert register_site.written == []
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing", gzip.compress(b"{}"), gzip.compress(b'{"format": 2}'), gzip.compress(b"[1]")],
    ids=["empty", "text", "no fields", "another format", "a list"],  # the bytes have the time in them
)
def test_what_is_no_trace_is_one_clear_error(tmp_path, content):
    path = tmp_path / "x.trace.gz"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"x\.trace\.gz"):
        load_trace(path)


def test_the_page_tells_the_chain_and_the_command_line_makes_it(register_site, capsys):
    register_site.register([60.0] * 300 + [59.5] * 100 + [None] * 60 + [60.0] * 300)
    names = {str(KINDS[load_trace(path).event["kind"]]): path for path in register_site.written}
    path = names["under_frequency"]
    assert command(["replay", str(path)]) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert command(["plot", str(path)]) == 0
    page = path.with_name(path.name.removesuffix(".trace.gz") + ".html").read_text()
    for words in (
        "Under frequency at s",
        "bytes on the socket",
        "no answer",
        "bit for bit",
        "<svg",
        "Setpoint",
        "Voltage",
    ):
        assert words in page
    trace = load_trace(path)
    assert "kept by another build" in trace_page(trace, "kept by another build", CAUSES, [str(kind) for kind in KINDS])


def test_a_chart_of_many_points_stays_small_and_keeps_its_extremes():
    points = [(i / 1000, 100.0 if i == 54_321 else 0.0) for i in range(100_000)]
    text = chart(Panel(title="x", unit="y", lines=[("z", points)]), 0.0, 100.0)
    assert len(text) < 40_000
    assert "54.3" in text or "L" in text
    flat = chart(Panel(title="x", unit="y", lines=[("z", [])]), 0.0, 1.0)
    assert "<svg" in flat
