"""Where the reflex listens: what Python has to find out before the native thread can go on alone.

A source is a mapping in the thread's words (see ``kernel.pyi``). Meter registers are polled, an OPC UA item is pushed, a WAV or
CSV file is played, an ADC's device file and UDP datagrams (WMS1) are streams of samples, a PMU speaks IEEE C37.118.2.
"""

from __future__ import annotations

import csv
import gzip
import os
import socket
import struct
import wave
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wattmesh_a2a.errors import ConfigurationError, UnavailableError

_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A register on the wire; ``function`` reads (3, 4) or writes (6, 16) it."""

    host: str
    port: int
    unit: int
    function: int
    address: int
    type: str
    word_order: str
    scale: float
    sign: int


def words_of(type_: str) -> int:
    """Registers that a value takes."""
    return 1 if type_ in {"u16", "s16"} else 2


def resolved(host: str) -> str:
    """An IPv4 address: the native thread looks no names up."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ConfigurationError(f"reflex: host {host!r} is not known ({error})") from error


def register_source(points: Sequence[Endpoint], *, poll_ms: float, most: int = 120) -> dict[str, Any]:
    """One block read of a frequency and, beside it, a voltage (and more that changes).

    Args:
        points: The frequency first. Of the others those are read that the same request reaches.
        poll_ms: Between polls.
        most: Registers the device gives in one request.
    """
    first = points[0]
    chosen = [first]
    for point in points[1:4]:
        if (point.host, point.port, point.unit, point.function) != (first.host, first.port, first.unit, first.function):
            continue
        span = [*chosen, point]
        if max(p.address + words_of(p.type) for p in span) - min(p.address for p in span) <= most:
            chosen.append(point)
    start = min(point.address for point in chosen)
    return {
        "kind": "register",
        "period_ns": round(poll_ms * 1e6),
        "host": resolved(first.host),
        "port": first.port,
        "unit": first.unit,
        "function": first.function,
        "address": start,
        "count": max(point.address + words_of(point.type) for point in chosen) - start,
        "pieces": [{**asdict(point), "offset": point.address - start} for point in chosen],
    }


def push_source(*, poll_ms: float = 50.0) -> dict[str, Any]:
    """Values that Python gives (:meth:`wattmesh_edge.reflex.Reflex.push`), like those of an OPC UA item."""
    return {"kind": "push", "period_ns": round(poll_ms * 1e6)}


def udp_source(address: str, *, rate_hz: float, phases: int) -> dict[str, Any]:
    """WMS1 datagrams. They carry no proof of who sent them, so only the machine itself may send."""
    host, port = _host_port(address, "udp")
    if not host.startswith("127."):
        raise ConfigurationError(
            f"frequency.source.udp: {address} is not loopback, and samples over UDP are not signed; "
            f"run the sender on this machine, or use a PMU or a meter"
        )
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.bind((host, port))
    except OSError as error:
        receiver.close()
        raise ConfigurationError(f"frequency.source.udp: {address} cannot be listened to: {error}") from error
    receiver.setblocking(False)
    return {
        "kind": "udp", "period_ns": 20_000_000, "fd": receiver.detach(), "rate_hz": rate_hz, "channels": phases,
        "scale": 1.0,
    }  # fmt: skip


def device_source(
    path: Path, *, rate_hz: float, phases: int, bits: int = 16, shift: int = 0, scale: float = 1.0, offset: float = 0.0
) -> dict[str, Any]:
    """An ADC's device file (``/dev/iio:deviceN`` with its buffer enabled): interleaved little-endian samples.

    Args:
        path: The file.
        rate_hz: Sampling frequency that was set.
        phases: Enabled channels, 1 or 3.
        bits: Storage bits of a sample, 16 or 32.
        shift: Bits a sample is shifted by (``in_voltage_type``).
        scale: Volts at the grid of one count (``in_voltage_scale`` and the transducer).
        offset: Counts added before (``in_voltage_offset``).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigurationError(f"frequency.source.adc: {path} cannot be opened: {error.strerror}") from error
    return {
        "kind": "stream", "period_ns": 20_000_000, "fd": fd, "rate_hz": rate_hz, "channels": phases,
        "sample_bytes": bits // 8, "shift": shift, "scale": scale, "offset": offset,
    }  # fmt: skip


def file_source(
    path: Path, *, rate_hz: float | None = None, columns: Sequence[str] = (), scale: float = 1.0, speed: float = 1.0
) -> dict[str, Any]:
    """A recorded waveform, played at its own speed: WAV (16 or 32 bit), or CSV with named columns.

    Raises:
        ConfigurationError: It cannot be read, or is not what it should be; file, line and column are named.
    """
    samples, channels, rate = read_waveform(path, rate_hz=rate_hz, columns=columns, scale=scale)
    return {
        "kind": "play", "period_ns": 5_000_000, "rate_hz": rate, "channels": channels, "samples": samples, "speed": speed,
    }  # fmt: skip


def read_waveform(
    path: Path, *, rate_hz: float | None = None, columns: Sequence[str] = (), scale: float = 1.0
) -> tuple[array[float], int, float]:
    """Interleaved samples in volts, how many channels, samples a second. See :func:`file_source`."""
    if path.suffix.lower() == ".wav":
        return _read_wav(path, scale)
    if rate_hz is None:
        raise ConfigurationError(f"{path}: a CSV does not say its sampling rate; give rate_hz")
    samples = array("d")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            rows = csv.reader(file)
            names = next(rows, [])
            wanted = list(columns) or names[-1:]
            missing = [name for name in wanted if name not in names]
            if missing or not wanted:
                raise ConfigurationError(f"{path}:1: there is no column {missing[:1]}; there are: {', '.join(names)}")
            places = [names.index(name) for name in wanted]
            for number, row in enumerate(rows, start=2):
                try:
                    samples.extend(float(row[place]) * scale for place in places)
                except (ValueError, IndexError) as error:
                    raise ConfigurationError(f"{path}:{number}: no sample there ({error})") from error
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from error
    return samples, _phases(path, len(places)), rate_hz


def _phases(path: Path, channels: int) -> int:
    if channels not in {1, 3}:
        raise ConfigurationError(f"{path}: {channels} channels; one phase or three are understood")
    return channels


def _read_wav(path: Path, scale: float) -> tuple[array[float], int, float]:
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise ConfigurationError(f"{path}: no WAV file that can be read: {error}") from error
    if width not in {2, 4}:
        raise ConfigurationError(f"{path}: {8 * width} bits a sample; 16 and 32 are understood")
    counts = struct.unpack(f"<{len(raw) // width}{'h' if width == 2 else 'i'}", raw)
    return array("d", (count * scale for count in counts)), _phases(path, channels), float(rate)


def _host_port(address: str, field: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigurationError(f"frequency.source.{field}: {address!r} is not HOST:PORT")
    return resolved(host), int(port)


# -- IEEE C37.118.2-2011: the client's side of the handshake


def crc_ccitt(data: bytes) -> int:
    """Checksum of a frame (annex B)."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def command_frame(id_code: int, command: int, utc_s: int = 0) -> bytes:
    """A command frame (6.6): 1 data off, 2 data on, 5 send CFG-2."""
    body = struct.pack(">HHHIIH", 0xAA41, 18, id_code, utc_s, 0, command)
    return body + struct.pack(">H", crc_ccitt(body))


def parse_configuration(frame: bytes) -> dict[str, Any]:
    """Places and formats of what the data frames will hold, from a CFG-2 frame (6.4); the first PMU in it counts.

    Raises:
        ConfigurationError: It is no CFG-2 frame, or has no phasor.
    """
    if (
        len(frame) < 54
        or frame[0] != 0xAA
        or frame[1] >> 4 != 3
        or crc_ccitt(frame[:-2]) != int.from_bytes(frame[-2:], "big")
    ):
        raise ConfigurationError("the PMU's answer is no valid CFG-2 frame")
    (count,) = struct.unpack_from(">H", frame, 18)
    if count != 1:
        raise ConfigurationError(f"the stream holds {count} PMUs; ask the concentrator for one")
    form, phasors, analogs, digitals = struct.unpack_from(">HHHH", frame, 38)
    if phasors < 1:
        raise ConfigurationError("the PMU sends no phasor, so its voltage is not known")
    units_at = 46 + 16 * (phasors + analogs + 16 * digitals)
    nominal_at = units_at + 4 * (phasors + analogs + digitals)
    if nominal_at + 8 != len(frame):  # FNOM, CFGCNT, DATA_RATE, CHK
        raise ConfigurationError("the PMU's CFG-2 frame is not as long as what it announces")
    (unit,) = struct.unpack_from(">I", frame, units_at)
    (nominal,) = struct.unpack_from(">H", frame, nominal_at)
    (rate,) = struct.unpack_from(">h", frame, len(frame) - 4)
    polar, phasor_float, analog_float, freq_float = (bool(form >> bit & 1) for bit in (0, 1, 2, 3))
    freq_at = 16 + phasors * (8 if phasor_float else 4)
    size = freq_at + (8 if freq_float else 4) + analogs * (4 if analog_float else 2) + digitals * 2
    return {
        "stat_at": 14, "phasor_at": 16, "phasor_float": phasor_float, "phasor_polar": polar, "freq_at": freq_at,
        "freq_float": freq_float, "phasor_scale": 1.0 if phasor_float else (unit & 0xFFFFFF) * 1e-5, "frame": size + 2,
        "nominal_hz": 50 if nominal & 1 else 60, "rate_hz": rate if rate > 0 else 1 / -rate if rate else 0,
    }  # fmt: skip


def pmu_source(address: str, *, id_code: int) -> dict[str, Any]:
    """A phasor measurement unit as a client over TCP.

    Raises:
        UnavailableError: It does not answer.
        ConfigurationError: It answers something else.
    """
    host, port = _host_port(address, "pmu")
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as link:
            link.sendall(command_frame(id_code, 1))
            link.sendall(command_frame(id_code, 5))
            found = _configuration_of(link)
    except OSError as error:
        raise UnavailableError(f"frequency.source.pmu: {address} does not answer: {error}") from error
    return {
        "kind": "pmu", "period_ns": 20_000_000, "host": host, "port": port, "id_code": id_code,
        "start": command_frame(id_code, 2), **found,
    }  # fmt: skip


def _configuration_of(link: socket.socket) -> dict[str, Any]:
    held = b""
    for _ in range(200):
        data = link.recv(4096)
        if not data:
            break
        held += data
        while len(held) >= 4 and len(held) >= (size := int.from_bytes(held[2:4], "big")) >= 16:
            frame, held = held[:size], held[size:]
            if frame[1] >> 4 == 3:
                return parse_configuration(frame)
    raise ConfigurationError("the PMU sent no CFG-2 frame")


def describe(source: Mapping[str, Any]) -> dict[str, Any]:
    """What of a source belongs into a trace: no samples, no descriptors."""
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in source.items()
        if name not in {"samples", "fd"}
    }
