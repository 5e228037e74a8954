"""What happened around an event: every input, estimate, decision, write and readback with its time; replayed bit for bit.

A trace begins with a copy of the loop's whole state, so that the recorded inputs lead to the very same outputs again. State and
records are plain memory of one build: another build replays the inputs from the same state only if its layout is the same, and
says so otherwise. The columns for a reader (plots, tables) are decoded from the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
import platform
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from wattmesh_a2a.errors import ConfigurationError

from wattmesh_edge.reflex.kernel import CORE_SIZE, INPUT_SIZE, OUTPUT_SIZE, Kernel

log = logging.getLogger(__name__)

BEFORE_NS, AFTER_NS, LONGEST_NS = 2_000_000_000, 1_000_000_000, 60_000_000_000
_APART_NS = 10_000_000_000
KEPT = 200
"""Traces that a site keeps; the oldest go first."""
INPUT = struct.Struct("<qq6dii")
OUTPUT = struct.Struct("<q" + "qqddq6d5dqqi4x" + "ddii")
INPUT_KINDS = ("sample", "wave", "bad", "epoch", "tick", "limits", "wrote", "readback", "rewrite")
OUTPUT_FIELDS = (
    "now_ns", "time_ns", "made_ns", "frequency_hz", "rocof", "report_ns", "frequency_report", "rocof_report", "frequency_100",
    "rocof_100", "frequency_500", "rocof_500", "voltage_v", "voltage_pu", "sigma_hz", "phase_turns", "step_deg", "steps",
    "delay_ns", "cause", "delta_pu", "target_w", "due", "responding",
)  # fmt: skip
assert INPUT.size == INPUT_SIZE, "the kernel's input record has another layout than this module reads"
assert OUTPUT.size == OUTPUT_SIZE, "the kernel's output record has another layout than this module reads"


@dataclass(frozen=True, slots=True)
class _Chunk:
    first: int
    inputs: bytes
    first_out: int
    outputs: bytes
    lost: int


@dataclass(slots=True)
class _Pending:
    rows: dict[str, Any]
    name: str
    start_ns: int
    end_ns: int | None = None


class _Source(Protocol):
    """What the recorder needs of a kernel."""

    def take_log(self) -> tuple[int, bytes, int, bytes, int]: ...
    def checkpoints(self) -> list[tuple[int, int, bytes]]: ...


@dataclass(slots=True)
class Recorder:
    """Keeps the last seconds, and writes a trace when an event is over (or has lasted a minute).

    Args:
        kernel: Whose log is taken; nobody else may take it.
        folder: Where traces go.
        site_id: For the trace.
        settings: What the kernel was made of.
    """

    kernel: _Source
    folder: Path
    site_id: str
    settings: Mapping[str, Any]
    lost: int = field(init=False, default=0)
    _chunks: deque[_Chunk] = field(init=False, default_factory=deque)
    _states: deque[tuple[int, int, bytes]] = field(init=False, default_factory=deque)
    _pending: dict[int, _Pending] = field(init=False, default_factory=dict)
    _begun: dict[int, int] = field(init=False, default_factory=dict)
    _cut: set[int] = field(init=False, default_factory=set)
    """Events whose trace was written before they were over."""

    def collect(
        self,
        rows: list[dict[str, Any]],
        names: Mapping[int, str],
        utc: Callable[[int], int],
        *,
        last: bool = False,
    ) -> list[Path]:
        """Take what is new, and write the traces that are complete by now; their files.

        Args:
            rows: News of events, as :meth:`Kernel.drain_events` gives them.
            names: Id of each event by its number.
            utc: UTC of a monotonic time.
            last: Nothing comes any more: write what is pending as far as it goes.
        """
        chunk = _Chunk(*self.kernel.take_log())
        self.lost += chunk.lost
        if chunk.inputs:
            self._chunks.append(chunk)
        for state in self.kernel.checkpoints():
            if not self._states or state[0] > self._states[-1][0]:
                self._states.append(state)
        for row in rows:
            number = row["number"]
            if number in self._cut:
                if row["end_ns"] is not None:
                    self._cut.discard(number)
            elif number in self._pending:
                self._pending[number].rows = row
                self._pending[number].end_ns = row["end_ns"]
            elif number in names and self._worth(row):
                self._pending[number] = _Pending(row, names[number], row["start_ns"], row["end_ns"])
        newest = self._newest_ns()
        written = []
        for number, one in list(self._pending.items()):
            over = one.end_ns is not None and newest >= one.end_ns + AFTER_NS
            if last or over or newest >= one.start_ns + LONGEST_NS:
                del self._pending[number]
                if one.end_ns is None:
                    self._cut.add(number)
                try:
                    written.append(self._write(one, utc))
                except OSError as error:
                    log.warning("the trace of %s could not be kept: %s", one.name, error)
        self._forget(newest)
        return written

    def _worth(self, row: dict[str, Any]) -> bool:
        """One trace of a kind in ten seconds: a source that comes and goes must not fill the disk."""
        last = self._begun.get(row["kind"])
        if last is not None and row["start_ns"] - last < _APART_NS:
            return False
        self._begun[row["kind"]] = row["start_ns"]
        return True

    def _newest_ns(self) -> int:
        if not self._chunks:
            return 0
        return int(INPUT.unpack_from(self._chunks[-1].inputs, len(self._chunks[-1].inputs) - INPUT_SIZE)[0])

    def _time_at(self, index: int) -> int | None:
        """Time of an input that is still held."""
        for chunk in self._chunks:
            place = (index - chunk.first) * INPUT_SIZE
            if 0 <= place < len(chunk.inputs):
                return int(INPUT.unpack_from(chunk.inputs, place)[0])
        return None

    def _forget(self, newest: int) -> None:
        """Drop what no trace can need any more; a checkpoint from before the oldest need stays, with all that follows it."""
        oldest = min((one.start_ns for one in self._pending.values()), default=newest) - 2 * BEFORE_NS
        keep = 0
        for index, _, _ in self._states:
            moment = self._time_at(index)
            if moment is not None and moment <= oldest:
                keep = index
        while len(self._chunks) > 1 and self._chunks[1].first <= keep:
            self._chunks.popleft()
        first = self._chunks[0].first if self._chunks else 0
        while len(self._states) > 1 and self._states[0][0] < first:
            self._states.popleft()

    def _write(self, one: _Pending, utc: Callable[[int], int]) -> Path:
        first = self._chunks[0].first
        inputs = b"".join(chunk.inputs for chunk in self._chunks)
        outputs = b"".join(chunk.outputs for chunk in self._chunks)
        first_out = self._chunks[0].first_out
        begin = one.start_ns - BEFORE_NS
        usable = [state for state in self._states if state[0] >= first] or [(first, first_out, b"")]
        chosen = usable[0]
        for state in usable:
            place = (state[0] - first) * INPUT_SIZE
            if place < len(inputs) and INPUT.unpack_from(inputs, place)[0] <= begin:
                chosen = state
        inputs = inputs[(chosen[0] - first) * INPUT_SIZE :]
        outputs = outputs[(chosen[1] - first_out) * OUTPUT_SIZE :]
        last = (one.end_ns or one.start_ns + LONGEST_NS) + AFTER_NS
        inputs = _until(inputs, INPUT, last)
        outputs = _until(outputs, OUTPUT, last)
        data = {
            "format": 1,
            "site": self.site_id,
            "event": {**one.rows, "id": one.name},
            "settings": self.settings,
            "layout": [CORE_SIZE, INPUT_SIZE, OUTPUT_SIZE, platform.machine()],
            "utc_ns": utc(one.start_ns),
            "monotonic_ns": one.start_ns,
            "overwritten": self.lost,
            "state": _pack(chosen[2]),
            "inputs": _pack(inputs),
            "outputs": _pack(outputs),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{one.name}.trace.gz"
        partial = path.with_suffix(".part")
        with gzip.open(partial, "wt", encoding="ascii", compresslevel=1) as file:
            json.dump(data, file)
        partial.replace(path)
        kept = sorted(self.folder.glob("*.trace.gz"), key=lambda found: found.stat().st_mtime)
        for old in kept[:-KEPT]:
            old.unlink(missing_ok=True)
        return path


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 6)).decode("ascii")


def _until(records: bytes, layout: struct.Struct, last_ns: int) -> bytes:
    """The records up to a time; they are in order of it."""
    low, high = 0, len(records) // layout.size
    while low < high:
        middle = (low + high) // 2
        if layout.unpack_from(records, middle * layout.size)[0] <= last_ns:
            low = middle + 1
        else:
            high = middle
    return records[: low * layout.size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace as it was kept."""

    path: Path
    site: str
    event: Mapping[str, Any]
    settings: Mapping[str, Any]
    layout: tuple[Any, ...]
    utc_ns: int
    monotonic_ns: int
    overwritten: int
    state: bytes
    inputs: bytes
    outputs: bytes

    def input_rows(self) -> Iterator[dict[str, Any]]:
        """Inputs in order: kind, times (monotonic ns), values."""
        for now, t, *values, kind, count in INPUT.iter_unpack(self.inputs):
            yield {"kind": INPUT_KINDS[kind], "now_ns": now, "time_ns": t, "values": values, "n": count}

    def output_rows(self) -> Iterator[dict[str, Any]]:
        """Estimates and decisions in order."""
        for row in OUTPUT.iter_unpack(self.outputs):
            yield dict(zip(OUTPUT_FIELDS, row, strict=True))


def load_trace(path: Path) -> Trace:
    """A trace of a file.

    Raises:
        ConfigurationError: It cannot be read, or is no trace.
    """
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            data = json.load(file)
        if data["format"] != 1:
            raise ConfigurationError(f"{path}: format {data['format']} is not known; this version reads format 1")
        blobs = {name: zlib.decompress(base64.b64decode(data[name])) for name in ("state", "inputs", "outputs")}
        return Trace(
            path=path,
            site=data["site"],
            event=data["event"],
            settings=data["settings"],
            layout=tuple(data["layout"]),
            utc_ns=data["utc_ns"],
            monotonic_ns=data["monotonic_ns"],
            overwritten=data["overwritten"],
            **blobs,
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise ConfigurationError(f"{path}: no trace of an event that can be read ({error})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay found."""

    inputs: int
    outputs: int
    identical: bool
    first_difference: str | None


def replay(trace: Trace) -> Replayed:
    """Send the recorded inputs through the same logic from the same state, and compare every output byte by byte.

    Raises:
        ConfigurationError: The trace is of another build or machine, whose state this one cannot take.
    """
    here = (CORE_SIZE, INPUT_SIZE, OUTPUT_SIZE, platform.machine())
    if tuple(trace.layout) != here or len(trace.state) != CORE_SIZE:
        raise ConfigurationError(
            f"{trace.path}: kept by another build ({trace.layout}; this one is {here}): it can be plotted, not replayed"
        )
    kernel = blank_kernel()
    kernel.restore(trace.state)
    made = kernel.replay(trace.inputs)
    count = min(len(made), len(trace.outputs)) // OUTPUT_SIZE
    difference = None
    for index in range(count):
        ours, theirs = (blob[index * OUTPUT_SIZE : (index + 1) * OUTPUT_SIZE] for blob in (made, trace.outputs))
        if ours != theirs:
            pairs = zip(OUTPUT_FIELDS, OUTPUT.unpack(theirs), OUTPUT.unpack(ours), strict=True)
            name, then, now = next((n, a, b) for n, a, b in pairs if struct.pack("<d", a) != struct.pack("<d", b))
            difference = f"output {index}: {name} was {then!r} and is {now!r}"
            break
    if difference is None and len(made) != len(trace.outputs):
        difference = f"{len(trace.outputs) // OUTPUT_SIZE} outputs were kept and {len(made) // OUTPUT_SIZE} are made"
    return Replayed(
        inputs=len(trace.inputs) // INPUT_SIZE,
        outputs=count,
        identical=difference is None,
        first_difference=difference,
    )


def blank_kernel() -> Kernel:
    """A kernel that only takes a state: what it was made of is in the state."""
    watches = [{"kind": kind, "over": False, "enter": 0.0, "leave": 0.0, "debounce_ns": 0} for kind in range(5)]
    return Kernel(
        {"kind": "push", "period_ns": 1_000_000_000, "realtime": False},
        {"nominal_hz": 50.0},
        {"knows_voltage": False, "watches": watches},
        None,
    )
