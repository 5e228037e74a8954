"""The native thread on real sockets and files, with devices that misbehave."""

import array
import ctypes
import math
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

import pytest
import register_server
from reflex_kernels import config, endpoint, until
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_edge.reflex import Reflex, ReflexConfig, sources
from wattmesh_edge.reflex.evidence import load_trace, replay


class Device:
    """The test's end of a device process."""

    def __init__(self, folder):
        self.log = folder / "device.log"
        self.process = subprocess.Popen(
            [sys.executable, register_server.__file__, str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self.process.stdout.readline())
        self.link = socket.create_connection(("127.0.0.1", self.port))

    def command(self, which, value):
        self.link.sendall(struct.pack(">HHHBBHh", 1, 0, 6, 1, 6, register_server.COMMAND + which, value))
        assert len(self.link.recv(100)) == 12

    def frequency(self, hertz):
        self.command(0, round((hertz - 60) * 1000))

    def fault(self, name):
        self.command(2, register_server.FAULTS.index(name))

    def rows(self, what):
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [(int(moment), float(value)) for name, moment, value in lines if name == what]

    def close(self):
        self.link.close()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=5)


@pytest.fixture
def device(tmp_path):
    one = Device(tmp_path)
    yield one
    one.close()


@pytest.fixture
def reflex(device, tmp_path):
    made = []

    def make(**more):
        there = {"port": device.port}
        settings = config(
            source=endpoint(**there), voltage=endpoint(address=2, **there), nominal_v=230.0, refresh_ms=20, **more
        )
        settings = _with_target(settings, device.port)
        one = Reflex(settings, traces=tmp_path / "events")
        made.append(one)
        one.start()
        until(lambda: one.snapshot().cause == "valid")
        return one

    yield make
    for one in made:
        one.stop()


def _with_target(settings, port):
    from dataclasses import replace

    if settings.response is None:
        return settings
    target = endpoint(function=16, type="s32", address=register_server.SETPOINT, port=port)
    return replace(settings, response=replace(settings.response, endpoint=target))


def test_a_drop_is_answered_on_the_wire_read_back_and_taken_back_at_the_stop(device, reflex):
    one = reflex()
    one.publish(-100.0, -5000.0, 5000.0)
    device.frequency(59.4)
    until(lambda: one.responding() is not None and one.responding() < -900)
    (began, _), *_ = device.rows("frequency")
    written, value = device.rows("setpoint")[0]
    assert 0 < written - began < 200e6, "a few polls, not a control cycle"
    assert value < -100
    until(lambda: one.snapshot().event_active)
    news = one.events(time.time_ns(), "x")
    assert [str(event.kind) for event in news] == ["under_frequency"]
    assert news[0].detection_to_write_ns < 20e6
    one.stop()
    assert device.rows("setpoint")[-1][1] == -100, "nothing of a response is left behind"
    (over,) = one.events(time.time_ns(), "x")
    assert over.end_ns is not None
    assert over.id == news[0].id


def test_every_deadline_is_accounted_for(reflex):
    one = reflex(poll_ms=5)
    before, began = one.snapshot(), time.monotonic()
    time.sleep(0.4)
    after, ended = one.snapshot(), time.monotonic()
    seen = after.polls + after.missed_deadlines - before.polls - before.missed_deadlines
    assert abs(seen - (ended - began) / 0.005) <= 3
    assert sum(one.kernel.snapshot()["lateness"]) == pytest.approx(one.snapshot().polls, abs=2)


def test_a_stuck_interpreter_does_not_delay_the_response(device, reflex):
    """A C call that keeps the interpreter's lock for a second, as a bad extension would; the device is another process."""
    one = reflex()
    one.publish(0.0, -5000.0, 5000.0)
    usleep = ctypes.PyDLL(None).usleep  # PyDLL: the lock is not released
    helper = subprocess.Popen([
        sys.executable, "-c",
        "import socket, struct, sys, time; time.sleep(0.3); s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
        "s.sendall(struct.pack('>HHHBBHh', 1, 0, 6, 1, 6, 100, -600)); s.recv(100)", str(device.port),
    ])  # fmt: skip
    began = time.monotonic_ns()
    for _ in range(2):
        usleep(900_000)
    ended = time.monotonic_ns()
    helper.wait(timeout=5)
    (dropped, _), *_ = device.rows("frequency")
    written, value = device.rows("setpoint")[0]
    assert began < dropped < written < ended, "while nobody could run Python"
    assert written - dropped < 200e6
    assert value < 0


@pytest.mark.parametrize("fault", ["silence", "garbage", "close", "wrong_transaction"])
def test_a_meter_that_fails_is_held_and_then_brought_to_the_safe_setpoint(device, reflex, fault):
    one = reflex()
    one.publish(500.0, -5000.0, 5000.0, safe_w=0.0)
    device.frequency(59.4)
    until(lambda: one.responding() is not None and one.responding() < -300)
    device.fault(fault)
    until(lambda: one.snapshot().fallen, 6)
    until(lambda: abs(device.rows("setpoint")[-1][1]) < 11, 8)
    assert one.snapshot().cause == "no answer"
    assert all(-1200 < value < 501 for _, value in device.rows("setpoint"))
    device.fault(None)
    device.frequency(60.0)
    until(lambda: one.responding() is None, 12)
    assert device.rows("setpoint")[-1][1] == 500


def test_an_idle_connection_that_the_device_ended_is_made_anew(device, reflex):
    one = reflex()
    one.publish(0.0, -5000.0, 5000.0)
    device.fault("drop_idle")
    device.frequency(59.4)
    until(lambda: device.rows("setpoint"))
    assert one.responding() is not None


def test_a_refused_write_is_counted_and_tried_again(device, reflex):
    one = reflex()
    one.publish(0.0, -5000.0, 5000.0)
    device.fault("exception")
    device.frequency(59.4)
    until(lambda: one.snapshot().write_failures >= 2)
    assert device.rows("setpoint") == []
    device.fault(None)
    until(lambda: device.rows("setpoint"))


def test_what_somebody_else_wrote_is_written_over(device, reflex):
    one = reflex()
    one.publish(0.0, -5000.0, 5000.0)
    device.frequency(59.4)
    until(lambda: one.responding() is not None and one.responding() < -900)
    count = len(until(lambda: device.rows("setpoint")))
    one.written_by_others()
    until(lambda: len(device.rows("setpoint")) > count)


def test_a_live_trace_replays_bit_for_bit(device, reflex, tmp_path):
    one = reflex()
    one.publish(0.0, -5000.0, 5000.0)
    device.frequency(59.5)
    until(lambda: one.snapshot().event_active)
    one.events(time.time_ns(), "x")
    device.frequency(60.0)
    until(lambda: not one.snapshot().event_active)

    def written():
        one.events(time.time_ns(), "x")
        return list((tmp_path / "events").glob("*.trace.gz"))

    (path,) = until(written)
    trace = load_trace(path)
    found = replay(trace)
    assert found.identical, found.first_difference
    assert found.outputs > 50
    kinds = {row["kind"] for row in trace.input_rows()}
    assert {"sample", "limits", "wrote", "readback"} <= kinds


def test_scheduling_is_reported_as_it_really_is(reflex):
    one = reflex(realtime=True)
    assert one.snapshot().scheduling in {"SCHED_FIFO", "SCHED_OTHER"}
    assert isinstance(one.snapshot().memory_locked, bool)
    granted = one.snapshot().scheduling == "SCHED_FIFO" and one.snapshot().memory_locked
    assert bool(one.scheduling_told()) != granted
    plain = Reflex(config())
    assert plain.snapshot().scheduling == "not running"
    assert plain.scheduling_told() is None


# -- streams


def watching(source, **more):
    return Reflex(
        ReflexConfig(site_id="s", nominal_hz=50, source=source, realtime=False, **{"nominal_v": 230.0, **more})
    )


def samples_of(seconds, rate, phases=3, hertz=50.0, first=0):
    out = []
    for index in range(first, first + round(seconds * rate)):
        theta = 2 * math.pi * hertz * index / rate
        out += [325.27 * math.cos(theta - shift) for shift in (0.0, 2 * math.pi / 3, -2 * math.pi / 3)[:phases]]
    return out


class Sender:
    """WMS1 datagrams on time, from a thread."""

    def __init__(self, port, rate=2000.0, phases=3, rate_told=None):
        self.out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.address, self.rate, self.phases, self.told = ("127.0.0.1", port), rate, phases, rate_told or rate
        self.index, self.sequence, self.running, self.skip, self.speed, self.stuck = 0, 0, True, 0, 1.0, False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        count, due = 20, time.monotonic()
        while self.running:
            values = samples_of(count / self.rate, self.rate, self.phases, first=0 if self.stuck else self.index)
            if self.stuck:
                values = values[: self.phases] * count
            body = struct.pack(f"<{len(values)}i", *(round(value * 1000) for value in values))
            head = struct.pack("<4sHHIQdd", b"WMS1", self.phases, count, self.sequence, self.index, self.told, 0.001)
            self.out.sendto(head + body, self.address)
            self.index = max(0, self.index + count + self.skip)
            self.skip = 0
            self.sequence += 1
            due += count / self.rate / self.speed
            time.sleep(max(0.0, due - time.monotonic()))

    def stop(self):
        self.running = False
        self.thread.join()
        self.out.close()


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def streaming():
    port = free_port()
    one = watching(sources.udp_source(f"127.0.0.1:{port}", rate_hz=2000.0, phases=3))
    one.start()
    sender = Sender(port)
    until(lambda: one.snapshot().cause == "valid")
    yield one, sender
    sender.stop()
    one.stop()


def seen(reflex, cause, seconds=5.0):
    """Whether a cause shows in the outputs; a gap lasts only some windows."""
    from wattmesh_edge.reflex import CAUSES
    from wattmesh_edge.reflex.evidence import OUTPUT, OUTPUT_FIELDS

    found = set()

    def look():
        _, _, _, outputs, _ = reflex.kernel.take_log()
        found.update(CAUSES[row[OUTPUT_FIELDS.index("cause")]] for row in OUTPUT.iter_unpack(outputs))
        return cause in found

    until(look, seconds)


def test_a_stream_of_samples_is_measured(streaming):
    one, _ = streaming
    snapshot = until(lambda: (s := one.snapshot()).sigma_hz is not None and s)
    assert snapshot.frequency_hz == pytest.approx(50.0, abs=1e-3)
    assert snapshot.voltage_v == pytest.approx(230.0, abs=0.2)
    assert snapshot.age_ms < 200


def test_lost_samples_are_a_gap(streaming):
    one, sender = streaming
    sender.skip = 40
    seen(one, "gap")
    until(lambda: one.snapshot().cause == "valid")


def test_samples_from_the_past_are_named(streaming):
    one, sender = streaming
    sender.skip = -10_000
    seen(one, "time jumped back")
    assert any(event.cause == "time jumped back" for event in until(lambda: one.events(time.time_ns(), "x")))


def test_another_rate_than_configured_is_named(streaming):
    one, sender = streaming
    sender.told = 1000.0
    seen(one, "sampling rate changed")


def test_a_rate_that_is_not_what_it_says_is_named(streaming):
    one, sender = streaming
    sender.speed = 1.2
    seen(one, "sampling rate changed", 8)
    (event,) = until(lambda: one.events(time.time_ns(), "x"))
    assert event.cause == "sampling rate changed", "told at once, and once"
    sender.speed = 1.0
    until(lambda: one.snapshot().cause == "valid", 8)


def test_a_stuck_input_is_named(streaming):
    one, sender = streaming
    sender.stuck = True
    until(lambda: one.snapshot().cause == "stuck")


def test_a_stream_that_ends_is_no_answer_and_an_event(streaming):
    one, sender = streaming
    sender.stop()
    until(lambda: one.snapshot().cause == "no answer")
    until(lambda: one.snapshot().open_events == ("invalid",))
    (event,) = one.events(time.time_ns(), "x")
    assert event.cause == "no answer"


def test_garbage_datagrams_are_counted_and_change_nothing(streaming):
    one, _ = streaming
    before, chance = one.snapshot().failures, random.Random(5)
    values = [round(value * 1000) for value in samples_of(0.01, 2000.0)]
    good = struct.pack("<4sHHIQdd", b"WMS1", 3, 20, 7, 10**6, 2000.0, 0.001) + struct.pack(f"<{len(values)}i", *values)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for _ in range(5000):
            data = bytearray(good[: chance.randrange(len(good) + 1)] if chance.random() < 0.3 else good)
            for _ in range(chance.randrange(1, 6)):
                if data:
                    data[chance.randrange(min(len(data), 44))] = chance.randrange(256)
            out.sendto(bytes(data), ("127.0.0.1", _port_of(one)))
    until(lambda: one.snapshot().failures > before + 500)
    until(lambda: one.snapshot().cause == "valid", 10)
    assert one.snapshot().frequency_hz == pytest.approx(50.0, abs=0.01)


def _port_of(reflex):
    fd = reflex.config.source["fd"]
    with socket.fromfd(fd, socket.AF_INET, socket.SOCK_DGRAM) as bound:
        return bound.getsockname()[1]


def test_udp_from_elsewhere_is_refused():
    with pytest.raises(ConfigurationError, match="not loopback"):
        sources.udp_source("192.0.2.1:9000", rate_hz=2000.0, phases=3)
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        sources.udp_source("9000", rate_hz=2000.0, phases=3)


def test_an_adcs_device_file(tmp_path):
    path = tmp_path / "iio"
    os.mkfifo(path)
    one = watching(sources.device_source(path, rate_hz=2000.0, phases=1, bits=16, shift=2, scale=0.1))
    one.start()
    with path.open("wb", buffering=0) as out:
        began = time.monotonic()
        index = 0
        while one.snapshot().cause != "valid" and time.monotonic() < began + 5:
            values = samples_of(0.01, 2000.0, 1, first=index)
            index += len(values)
            out.write(struct.pack(f"<{len(values)}h", *(round(value * 10) << 2 for value in values)))
            time.sleep(max(0.0, began + index / 2000 - time.monotonic()))
        assert one.snapshot().voltage_v == pytest.approx(230.0, abs=0.5)
    until(lambda: one.snapshot().cause == "no answer")
    before = one.snapshot().polls
    began = time.thread_time(), time.process_time()
    time.sleep(0.2)
    assert time.process_time() - began[1] < 0.1, "a device whose other end is gone does not keep a core busy"
    assert one.snapshot().polls - before < 15
    one.stop()
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        sources.device_source(tmp_path / "none", rate_hz=2000.0, phases=1)


def test_a_recording_is_played(tmp_path):
    wav = tmp_path / "mains.wav"
    with wave.open(str(wav), "wb") as out:
        out.setparams((1, 2, 4000, 0, "NONE", ""))
        values = samples_of(1.0, 4000.0, 1)
        out.writeframes(struct.pack(f"<{len(values)}h", *(round(value * 50) for value in values)))
    csv = tmp_path / "mains.csv"
    rows = samples_of(1.0, 4000.0)
    csv.write_text("a,b,c\n" + "\n".join(",".join(f"{v:.4f}" for v in rows[i : i + 3]) for i in range(0, len(rows), 3)))
    for source in (
        sources.file_source(wav, scale=0.02),
        sources.file_source(csv, rate_hz=4000.0, columns=("a", "b", "c")),
    ):
        one = watching(source)
        one.start()
        until(lambda one=one: one.snapshot().cause == "valid")
        assert one.snapshot().frequency_hz == pytest.approx(50.0, abs=0.01)
        assert one.snapshot().voltage_v == pytest.approx(230.0, abs=0.5)
        until(lambda one=one: one.snapshot().cause == "no answer")  # the recording is over
        one.stop()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"a,b\n1,2\n1,x\n", r"a\.csv:3"),
        ("a.csv", b"a,b\n1,2\n", "no column"),
        ("a.wav", b"RIFF....", "no WAV file"),
        ("a.wav", b"", "no WAV file"),
    ],
)
def test_a_recording_that_is_none_is_one_clear_error(tmp_path, name, content, told):
    path = tmp_path / name
    path.write_bytes(content)
    columns = ("c",) if told == "no column" else ("b",)
    with pytest.raises(ConfigurationError, match=told):
        sources.file_source(path, rate_hz=100.0, columns=columns)
    with pytest.raises(ConfigurationError, match=r"cannot be read|no WAV"):
        sources.file_source(tmp_path / ("none" + path.suffix), rate_hz=100.0)


def test_class_m_is_for_reporting(tmp_path):
    made = Reflex(config(source={"kind": "play", "period_ns": 5_000_000, "rate_hz": 4800.0, "channels": 3,
                                 "samples": array.array("d", [0.0])}, m_class=True))  # fmt: skip
    assert not made.responds
    assert "class M" in made.why_watching


def test_an_item_that_python_pushes():
    one = watching(sources.push_source(poll_ms=5), refresh_ms=10, nominal_v=230.0)
    one.start()
    for index in range(10):
        one.push(50 - 0.001 * index, 229.0)
        time.sleep(0.01)
    until(lambda: one.snapshot().cause == "valid")
    assert one.snapshot().frequency_hz == pytest.approx(49.991, abs=0.003)
    assert one.snapshot().voltage_v == 229.0
    until(lambda: one.snapshot().cause == "no answer")
    one.stop()


def test_a_pmu_that_does_not_answer_is_one_clear_error():
    with pytest.raises(UnavailableError, match="does not answer"):
        sources.pmu_source("127.0.0.1:1", id_code=7)


def test_samples_for_play_need_not_be_a_list():
    data = array.array("d", samples_of(0.3, 1000.0))
    source = {"kind": "play", "period_ns": 1_000_000, "rate_hz": 1000.0, "channels": 3, "samples": data, "speed": 4.0}
    one = watching(source)
    one.start()
    until(lambda: one.snapshot().cause == "no answer")
    one.stop()
    assert Path(__file__).exists()
