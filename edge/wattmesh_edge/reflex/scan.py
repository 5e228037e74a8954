"""Send a recording through the reflex's own logic: which events would it have told, and when was the measurement not valid?

A waveform goes sample by sample, a table of frequencies as if it were a meter's register. Times are those of the recording.
"""

from __future__ import annotations

import csv
import gzip
import itertools
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wattmesh_a2a.errors import ConfigurationError

from wattmesh_edge.reflex import CAUSES, KINDS, Endpoint, ReflexConfig, Response, kernel_settings, make_kernel
from wattmesh_edge.reflex.evidence import OUTPUT, OUTPUT_FIELDS
from wattmesh_edge.reflex.kernel import Kernel
from wattmesh_edge.reflex.profile import ResponseProfile

_START_NS = 10**12
_CAUSE, _NOW = OUTPUT_FIELDS.index("cause"), 0
_PIECE = 4096
_REGISTER = Endpoint(
    host="127.0.0.1", port=1, unit=1, function=4, address=0, type="f32", word_order="big", scale=1.0, sign=1
)

Row = tuple[float, float | None, float | None]
"""Seconds, Hz (none: no answer), V (none: not measured)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a recording holds."""

    events: list[dict[str, Any]]
    """As :meth:`Kernel.drain_events` gives them (ended ones), with ``name`` and ``start_s`` in the recording's time."""
    setpoints: list[tuple[float, float]]
    """(s, W) where a profile was given."""
    causes: Counter[str]
    """Estimates by validity."""
    spans: list[tuple[float, float, str]]
    """(from s, to s, cause) of what was not valid."""
    seconds: float


def _kernel(
    source: Any,
    nominal_hz: float,
    nominal_v: float,
    rail_v: float,
    refresh_ms: float,
    profile: ResponseProfile | None,
    power_w: float,
) -> Kernel:
    target = replace(_REGISTER, function=16)
    response = Response(endpoint=target, rated_power_w=power_w, profile=profile) if profile is not None else None
    config = ReflexConfig(
        site_id="recording",
        nominal_hz=nominal_hz,
        source=source,
        voltage=replace(_REGISTER, address=2) if source is _REGISTER else None,
        refresh_ms=refresh_ms,
        nominal_v=nominal_v,
        rail_v=rail_v,
        realtime=False,
        response=response,
    )
    kernel = make_kernel(kernel_settings(config))
    if profile is not None:
        kernel.publish(0.0, -power_w, power_w, now=_START_NS)
    return kernel


class _Collector:
    """Takes what a kernel makes, piece by piece, before its rings run over."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.events: list[dict[str, Any]] = []
        self.causes: Counter[str] = Counter()
        self.spans: list[tuple[float, float, str]] = []
        self._bad: tuple[float, int] | None = None
        self._last = 0.0

    def take(self) -> None:
        _, _, _, outputs, lost = self._kernel.take_log()
        assert lost == 0, "a piece was larger than the kernel's rings"
        for row in OUTPUT.iter_unpack(outputs):
            cause, at = row[_CAUSE], (row[_NOW] - _START_NS) / 1e9
            self._last = at
            self.causes[CAUSES[cause]] += 1
            if self._bad is not None and cause != self._bad[1]:
                self.spans.append((self._bad[0], at, CAUSES[self._bad[1]]))
                self._bad = None
            if cause and self._bad is None:
                self._bad = (at, cause)
        for event in self._kernel.drain_events()[0]:
            if event["end_ns"] is not None:
                named = {"name": str(KINDS[event["kind"]]), "start_s": (event["start_ns"] - _START_NS) / 1e9}
                self.events.append({**event, **named})

    def found(self, setpoints: list[tuple[float, float]], seconds: float) -> Found:
        self._kernel.end(_START_NS + round(seconds * 1e9))
        self.take()
        if self._bad is not None:
            self.spans.append((self._bad[0], self._last, CAUSES[self._bad[1]]))
        return Found(events=self.events, setpoints=setpoints, causes=self.causes, spans=self.spans, seconds=seconds)


def scan_waveform(
    samples: array[float],
    *,
    rate_hz: float,
    phases: int = 1,
    nominal_hz: float = 50.0,
    nominal_v: float = 0.0,
    rail_v: float = 0.0,
    profile: ResponseProfile | None = None,
    power_w: float = 5000.0,
) -> Found:
    """Events of interleaved samples.

    Args:
        samples: Volts, or counts where ``nominal_v`` is 0.
        rate_hz: Samples a second.
        phases: 1 or 3.
        nominal_hz: 50 or 60.
        nominal_v: 0: the level is followed.
        rail_v: Largest magnitude the source can give; 0: not known.
        profile: What answers; none only watches.
        power_w: Of the response.

    Raises:
        ConfigurationError: The rate gives no usable number of samples a cycle.
    """
    source = {
        "kind": "play",
        "period_ns": 5_000_000,
        "rate_hz": rate_hz,
        "channels": phases,
        "samples": array("d", [0.0]),
    }
    try:
        kernel = _kernel(source, nominal_hz, nominal_v, rail_v, 0.0, profile, power_w)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    collector, setpoints = _Collector(kernel), []
    total = len(samples) // phases
    for first in range(0, total, _PIECE):
        now = _START_NS + round(first / rate_hz * 1e9)
        if profile is not None:
            kernel.publish(0.0, -power_w, power_w, now=now)
        piece = samples[first * phases : (first + _PIECE) * phases]
        setpoints += [((at - _START_NS) / 1e9, watt) for at, watt in kernel.feed_wave(piece, now)]
        collector.take()
    return collector.found(setpoints, total / rate_hz)


def scan_register(
    rows: Sequence[Row],
    *,
    nominal_hz: float = 50.0,
    nominal_v: float = 0.0,
    profile: ResponseProfile | None = None,
    power_w: float = 5000.0,
) -> Found:
    """Events of a table of frequencies, as if it were a meter's register.

    Args:
        rows: In order of time.
        nominal_hz: 50 or 60.
        nominal_v: Of the voltages; 0: not known.
        profile: What answers; none only watches.
        power_w: Of the response.
    """
    gaps = sorted(after[0] - before[0] for before, after in itertools.pairwise(rows))
    refresh_ms = gaps[len(gaps) // 2] * 1000 if gaps else 0.0
    kernel = _kernel(_REGISTER, nominal_hz, nominal_v, 0.0, refresh_ms, profile, power_w)
    collector, setpoints = _Collector(kernel), []
    begin = rows[0][0] if rows else 0.0
    for index, (at, hertz, volts) in enumerate(rows):
        now = _START_NS + round((at - begin) * 1e9)
        if profile is not None:
            kernel.publish(0.0, -power_w, power_w, now=now)
        values = None if hertz is None else (hertz,) if volts is None else (hertz, volts)
        watt = kernel.feed(now, values)
        if watt is not None:
            setpoints.append((at - begin, watt))
        if index % 1024 == 1023:
            collector.take()
    return collector.found(setpoints, rows[-1][0] - begin if rows else 0.0)


def read_table(path: Path, *, time: str, frequency: str, voltage: str | None = None) -> list[Row]:
    """Rows for :func:`scan_register` of a CSV (or .csv.gz); time in seconds or ISO 8601, blanks are no answer.

    Raises:
        ConfigurationError: File, line and column are named.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or ())
            for wanted in (time, frequency, *([voltage] if voltage else [])):
                if wanted not in names:
                    raise ConfigurationError(f"{path}:1: there is no column {wanted!r}; there are: {', '.join(names)}")
            rows: list[Row] = []
            for number, row in enumerate(reader, start=2):
                try:
                    at = _seconds(row[time])
                    hertz = float(row[frequency]) if row[frequency] else None
                    volts = float(row[voltage]) if voltage and row[voltage] else None
                except (ValueError, TypeError) as error:
                    raise ConfigurationError(f"{path}:{number}: {error}") from error
                rows.append((at, hertz, volts))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from error
    return rows


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
