"""Independent implementations: EPRI's OpenDER for IEEE 1547-2018, the synchrophasor package for IEEE C37.118.2."""

import math
import random
import socket
import struct
import threading
import time
import warnings

import pytest
from reflex_kernels import START, S, endpoint, register_kernel, until
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_edge.reflex import Reflex, ReflexConfig, load_profile, sources

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opender import DER, DER_BESS
    from synchrophasor.frame import ConfigFrame2, DataFrame

# -- IEEE 1547-2018: OpenDER


STEP_S = 0.02


def opender(category):
    DER.t_s = STEP_S
    der = DER_BESS()
    file = der.der_file
    file.NP_ABNORMAL_OP_CAT = f"CAT_{category}"
    profile = load_profile(f"ieee1547_2018_cat_{category.lower()}")
    droop = profile.continuous
    file.PF_DBOF = file.PF_DBUF = droop.dead_band_hz
    file.PF_KOF = file.PF_KUF = droop.droop
    file.PF_OLRT = droop.open_loop_response_s
    names = {"over_frequency": "OF", "under_frequency": "UF", "over_voltage": "OV", "under_voltage": "UV"}
    for quantity, short in names.items():
        rows = sorted(
            (trip for trip in profile.trip if trip.quantity == quantity), key=lambda trip: trip.clearing_s, reverse=True
        )
        letter = "F" if short.endswith("F") else "V"
        for number, trip in enumerate(rows, start=1):
            setattr(file, f"{short}{number}_TRIP_{letter}", trip.threshold)
            setattr(file, f"{short}{number}_TRIP_T", trip.clearing_s)
    return der, profile


def run_opender(der, seconds, f, v=1.0, p=0.2):
    """Powers (pu, generation positive) and the time of the trip."""
    powers, tripped = [], None
    for step in range(round(seconds / STEP_S)):
        der.update_der_input(f=f, v_pu=v, p_dem_pu=p)
        der.run()
        powers.append(float(der.p_out_pu))
        if tripped is None and "Trip" in str(der.der_status):
            tripped = (step + 1) * STEP_S
    return powers, tripped


def run_ours(kernel, at, seconds, f, v=1.0, p=0.2):
    powers, tripped, held = [], None, kernel.responding()
    for step in range(round(seconds / STEP_S)):
        now = at + round(step * STEP_S * S)
        if step % 500 == 0:
            kernel.publish(-5000 * p, -5000, 5000, now=now)
        written = kernel.feed(now, (f + 1e-6 * (step % 2), 230 * v))
        held = written if written is not None else held
        powers.append(p if held is None else -held / 5000)
        if tripped is None and kernel.snapshot()["tripped"]:
            tripped = (step + 1) * STEP_S
    return powers, tripped


def ours(category):
    kernel = register_kernel(
        answer=load_profile(f"ieee1547_2018_cat_{category.lower()}"), nominal_v=230.0, voltage=endpoint(address=2)
    )
    run_ours(kernel, START, 2.0, 60.0)
    return kernel


@pytest.mark.parametrize("frequency", [58.9, 59.4, 59.7, 59.95, 60.03, 60.1, 60.5, 61.0])
def test_droop_agrees_with_opender(frequency):
    der, _ = opender("III")
    run_opender(der, 2.0, 60.0)
    theirs, _ = run_opender(der, 30.0, frequency)
    here, _ = run_ours(ours("III"), START + 2 * S, 30.0, frequency)
    assert here[-1] == pytest.approx(theirs[-1], abs=0.005)
    # and on the way there: the open-loop response of five seconds to 90 %
    for second in (1.0, 2.5, 5.0, 10.0):
        index = round(second / STEP_S)
        assert here[index] == pytest.approx(theirs[index], abs=0.02)


@pytest.mark.parametrize("category", ["I", "II", "III"])
@pytest.mark.parametrize(
    ("quantity", "share"),
    [("over_frequency", 1.001), ("under_frequency", 0.999), ("over_voltage", 1.01), ("under_voltage", 0.99)],
)
def test_trips_agree_with_opender(category, quantity, share):
    _, profile = opender(category)
    for trip in (trip for trip in profile.trip if trip.quantity == quantity and trip.clearing_s < 60):
        der, _ = opender(category)
        run_opender(der, 2.0, 60.0)
        f = trip.threshold * share if quantity.endswith("frequency") else 60.0
        v = trip.threshold * share if quantity.endswith("voltage") else 1.0
        _, theirs = run_opender(der, trip.clearing_s + 3, f, v)
        _, here = run_ours(ours(category), START + 2 * S, trip.clearing_s + 3, f, v)
        assert theirs is not None
        assert here == pytest.approx(theirs, abs=0.07), (trip, here, theirs)


def test_riding_through_agrees_with_opender():
    for f, v in ((61.1, 1.0), (58.6, 1.0), (60.0, 1.09), (60.0, 0.89)):
        der, _ = opender("III")
        run_opender(der, 2.0, 60.0)
        _, theirs = run_opender(der, 25.0, f, v)
        _, here = run_ours(ours("III"), START + 2 * S, 25.0, f, v)
        assert theirs is None
        assert here is None


# -- IEEE C37.118.2: frames of the synchrophasor package


class Pmu:
    """Frames made by another implementation, sent by a thread."""

    def __init__(self, *, integers=True, polar=False, rate=50, actual=False):
        self.actual = actual
        self.format = (polar, not integers, False, not integers)  # polar, phasors, analogs, frequency as floats
        phasor_unit = [(915527, "v")]
        self.configuration = ConfigFrame2(
            7, 1_000_000, 1, "Station", 7, self.format, 1, 0, 0, ["VA"], phasor_unit, [], [], 60, 1, rate
        )
        self.integers, self.polar = integers, polar
        self.deviation_mhz, self.fault, self.frames, self.step_s = 0, None, 0, 1 / rate
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(0.05)
        self.port = self.server.getsockname()[1]
        self.running, self.threads = True, []
        self.threads.append(threading.Thread(target=self.accept, daemon=True))
        self.threads[0].start()

    def accept(self):
        while self.running:
            try:
                link, _ = self.server.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            thread = threading.Thread(target=self.serve, args=(link,), daemon=True)
            thread.start()
            self.threads.append(thread)

    def serve(self, link):
        link.settimeout(0.005)
        sending, due = False, time.monotonic()
        with link:
            while self.running:
                try:
                    data = link.recv(1024)
                    if not data:
                        return
                    for at in range(0, len(data), 18):
                        command = data[at + 15]
                        if command == 5:
                            link.sendall(self.configuration.convert2bytes())
                        sending = command == 2 if command in {1, 2} else sending
                        due = time.monotonic()
                except TimeoutError:
                    pass
                except OSError:
                    return
                while sending and due <= time.monotonic():
                    due += self.step_s
                    if self.fault == "silence":
                        continue
                    try:
                        link.sendall(self.frame())
                    except OSError:
                        return

    def frame(self):
        self.frames += 1
        volts, angle = 230.0, 0.3
        if self.integers:
            counts = round(volts / (915527 * 1e-5))
            rectangle = (round(counts * math.cos(angle)), round(counts * math.sin(angle)))
            phasor = (counts, round(angle * 1e4)) if self.polar else rectangle
            frequency = self.deviation_mhz
        else:
            phasor = (volts, angle) if self.polar else (volts * math.cos(angle), volts * math.sin(angle))
            frequency = self.deviation_mhz / 1000  # that package sends the deviation; the standard has the actual value
        frequency = frequency if self.integers else frequency + 1e-4 * (self.frames % 2)
        status = ("ok", True, "timestamp", False, False, False, 0, "<10", 0)
        if self.fault == "stat":
            status = ("error", *status[1:])
        frame = DataFrame(7, status, [phasor], frequency, 0, [], [], self.configuration)
        soc = int(time.time()) - (100 if self.fault == "time_back" else 0)
        frame.set_time(soc, 0)
        data = bytearray(frame.convert2bytes())
        if self.actual:
            struct.pack_into(">f", data, 24, 60 + frequency)
            data[-2:] = sources.crc_ccitt(bytes(data[:-2])).to_bytes(2, "big")
        if self.fault == "crc":
            data[-1] ^= 1
        return bytes(data)

    def close(self):
        self.running = False
        self.server.close()
        for thread in self.threads:
            thread.join(timeout=2)


def listening(pmu):
    one = Reflex(
        ReflexConfig(
            site_id="s", nominal_hz=60, source=sources.pmu_source(f"127.0.0.1:{pmu.port}", id_code=7), nominal_v=230.0,
            refresh_ms=20, realtime=False,
        )
    )  # fmt: skip
    one.start()
    return one


@pytest.mark.parametrize(("integers", "actual"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("polar", [True, False])
def test_a_pmu_of_another_make_is_understood(integers, actual, polar):
    pmu = Pmu(integers=integers, polar=polar, actual=actual)
    pmu.deviation_mhz = -37
    one = listening(pmu)
    until(lambda: one.snapshot().frequency_hz is not None)
    assert one.snapshot().frequency_hz == pytest.approx(59.963, abs=2e-4)
    assert one.snapshot().voltage_v == pytest.approx(230.0, abs=10 if integers else 0.01), (
        "integers have steps of 9 V here"
    )
    one.stop()
    pmu.close()


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("silence", "no answer"), ("stat", "the source says so"), ("time_back", "time jumped back"), ("crc", "no answer")],
)
def test_a_pmu_that_fails_is_an_invalid_measurement_and_comes_back(fault, cause):
    pmu = Pmu(integers=False)
    one = listening(pmu)
    until(lambda: one.snapshot().cause == "valid")
    pmu.fault = fault
    until(lambda: one.snapshot().cause == cause)
    assert one.snapshot().frequency_hz is None
    pmu.fault = None
    until(lambda: one.snapshot().cause == "valid", 12)
    one.stop()
    pmu.close()


def test_configurations_that_do_not_serve_are_refused():
    frame = Pmu.__new__(Pmu)
    frame.format = (False, True, False, True)
    good = ConfigFrame2(7, 1_000_000, 1, "S", 7, frame.format, 1, 0, 0, ["VA"], [(0, "v")], [], [], 50, 1, 50)
    found = sources.parse_configuration(good.convert2bytes())
    assert (found["nominal_hz"], found["rate_hz"], found["freq_float"]) == (50, 50, True)
    with pytest.raises(ConfigurationError, match="no valid CFG-2"):
        sources.parse_configuration(good.convert2bytes()[:-1] + b"\x00")
    with pytest.raises(ConfigurationError, match="no valid CFG-2"):
        sources.parse_configuration(b"\xaa\x31\x00\x10" + bytes(12))
    chance, whole = random.Random(2), good.convert2bytes()
    for _ in range(20_000):
        data = bytearray(whole[: chance.randrange(20, len(whole) + 1)] + bytes(chance.randrange(3)))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        data[0], data[1] = 0xAA, 0x31
        data[-2:] = sources.crc_ccitt(bytes(data[:-2])).to_bytes(2, "big")
        try:
            sources.parse_configuration(bytes(data))
        except ConfigurationError:
            continue


def test_something_else_behind_the_port_is_one_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            link, _ = server.accept()
            with link:
                link.recv(1000)
                link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises((ConfigurationError, UnavailableError), match=r"no CFG-2|does not answer"):
            sources.pmu_source(f"127.0.0.1:{port}", id_code=7)
        thread.join()
