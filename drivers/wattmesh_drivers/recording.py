"""Recordings: what went over a device's wire, in a file that can be served as the device and that tests can read.

JSON lines. The first is the header. Of Modbus, each of the next is a request with its answer (PDUs in hexadecimal; ``null``
where none came); of OPC UA, what a poll was told: by point the value as it came and its status code. The last is what the
driver made of it, which turns the recording into a test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_drivers.modbus.line import Line

if TYPE_CHECKING:
    from wattmesh_drivers.opcua.driver import OpcUaDriver

_LINE_AT_MOST = 1_000_000
_MISSING = 0x80340000
"""BadNodeIdUnknown (OPC 10000-6, A.2)."""

Grade = Literal["hardware", "peer", "simulated"]
"""Recorded from the device itself; from software that is independent of ours; from our own simulation of it."""


class Recorder:
    """What all recordings share.

    Args:
        path: The file; an existing one is replaced when the recording is whole.
        clock: Dates the recording.
        template: The device's.
        unit: The device's; 0 where there is none.
        grade: What it was recorded from.
        device: Product and firmware, in words.
    """

    def __init__(self, path: Path, clock: Clock, *, template: str, unit: int, grade: Grade, device: str) -> None:
        self._path = path
        made = datetime.fromtimestamp(clock.utc_ns() / 1e9, tz=UTC).isoformat(timespec="seconds")
        self._lines: list[dict[str, Any]] = [
            {"recording": 1, "template": template, "unit": unit, "grade": grade, "device": device, "made": made}
        ]

    def polled(self) -> None:
        """A poll is over."""

    def finish(self, expected: Mapping[str, float]) -> int:
        """Write the file, whole or not at all.

        Args:
            expected: What the driver made of the last answers, by point; NaN for no data.

        Returns:
            How many answers are in it.
        """
        values = {name: None if math.isnan(value) else value for name, value in expected.items()}
        lines = [*self._lines, {"expect": values}]
        draft = self._path.with_suffix(self._path.suffix + ".draft")
        draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        draft.replace(self._path)
        return len(self._lines) - 1


class LineRecorder(Recorder):
    """Writes what goes over a Modbus line from and to one unit; see :class:`Recorder`."""

    def __init__(
        self, path: Path, line: Line, clock: Clock, *, template: str, unit: int, grade: Grade, device: str
    ) -> None:
        super().__init__(path, clock, template=template, unit=unit, grade=grade, device=device)
        self._line = line
        self._unit = unit
        self._asked: list[bytes] = []
        line.tap = self._heard

    def _heard(self, what: str, unit: int, pdu: bytes) -> None:
        if unit != self._unit:
            return
        if what == "request":
            self._asked.append(pdu)
        elif what == "answer" and self._asked:  # answers come in the order of the requests
            self._lines.append({"request": self._asked.pop(0).hex(), "answer": pdu.hex()})
        elif what == "silence":  # of nobody who was asked together will one be believed any more
            self._lines += [{"request": asked.hex(), "answer": None} for asked in self._asked]
            self._asked.clear()

    def finish(self, expected: Mapping[str, float]) -> int:
        """See :meth:`Recorder.finish`."""
        self._line.tap = None
        return super().finish(expected)


class NodeRecorder(Recorder):
    """Writes what an OPC UA server tells of a device's nodes; see :class:`Recorder`."""

    def __init__(self, path: Path, driver: OpcUaDriver, clock: Clock, *, grade: Grade, device: str) -> None:
        super().__init__(path, clock, template=driver.template.id, unit=0, grade=grade, device=device)
        self._driver = driver
        self._now: dict[str, tuple[object, int]] = {}
        driver.tap = self._told

    def _told(self, values: Sequence[tuple[str, object, int]]) -> None:
        self._now |= {
            name: (raw if isinstance(raw, int | float) and math.isfinite(raw) else None, code)
            for name, raw, code in values
        }

    def polled(self) -> None:
        """See :meth:`Recorder.polled`."""
        missing = dict.fromkeys(self._driver.audit.missing, (None, _MISSING))
        self._lines.append({"values": self._now | missing})

    def finish(self, expected: Mapping[str, float]) -> int:
        """See :meth:`Recorder.finish`."""
        self._driver.tap = None
        return super().finish(expected)


def header_of(path: Path) -> dict[str, Any]:
    """The first line of a recording; raises :class:`ConfigurationError`."""
    try:
        with path.open(encoding="utf-8") as file:
            header: dict[str, Any] = json.loads(file.readline(_LINE_AT_MOST))
        if header["recording"] != 1 or header["grade"] not in get_args(Grade):
            raise ValueError("another version, or an unknown grade")
        return {name: header[name] for name in ("template", "unit", "grade", "device", "made")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: is no recording of a device ({error!r})") from error


def expected_of(path: Path) -> dict[str, float | None]:
    """What a recording's driver made of it; raises :class:`ConfigurationError` where it does not say."""
    try:
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        return {str(name): None if value is None else float(value) for name, value in last["expect"].items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: has no expected values ({error!r})") from error
