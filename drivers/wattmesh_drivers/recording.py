"""Recordings: what went over a device's wire, in a file that can be served as the device and that tests can read.

JSON lines. The first is the header; each of the next is a request with its answer (PDUs in hexadecimal; ``null`` where none came);
the last may be what the driver made of it, by point, which turns the recording into a test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_drivers.modbus.line import Line

Grade = Literal["hardware", "peer", "simulated"]
"""Recorded from the device itself; from software that is independent of ours; from our own simulation of it."""


class Recorder:
    """Writes what goes over a line.

    Args:
        path: The file; an existing one is replaced when the recording is whole.
        line: Where to listen.
        clock: Dates the recording.
        template: The device's.
        unit: The device's; others on the line are left out.
        grade: What it was recorded from.
        device: Product and firmware, in words.
    """

    def __init__(
        self, path: Path, line: Line, clock: Clock, *, template: str, unit: int, grade: Grade, device: str
    ) -> None:
        self._path = path
        self._line = line
        self._unit = unit
        made = datetime.fromtimestamp(clock.utc_ns() / 1e9, tz=UTC).isoformat(timespec="seconds")
        self._lines: list[dict[str, Any]] = [
            {"recording": 1, "template": template, "unit": unit, "grade": grade, "device": device, "made": made}
        ]
        self._asked: list[bytes] = []
        line.tap = self._heard

    def _heard(self, what: str, unit: int, pdu: bytes) -> None:
        if unit != self._unit:
            return
        if what == "request":
            self._asked.append(pdu)
        elif self._asked:  # answers come in the order of the requests
            asked = self._asked.pop(0)
            self._lines.append({"request": asked.hex(), "answer": pdu.hex() if what == "answer" else None})

    def finish(self, expected: Mapping[str, float]) -> int:
        """Stop listening and write the file, whole or not at all.

        Args:
            expected: What the driver made of the last answers, by point; NaN for no data.

        Returns:
            How many requests are in it.
        """
        self._line.tap = None
        values = {name: None if math.isnan(value) else value for name, value in expected.items()}
        lines = [*self._lines, {"expect": values}]
        draft = self._path.with_suffix(self._path.suffix + ".draft")
        draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        draft.replace(self._path)
        return len(self._lines) - 1


def header_of(path: Path) -> dict[str, Any]:
    """The first line of a recording; raises :class:`ConfigurationError`."""
    try:
        with path.open(encoding="utf-8") as file:
            header: dict[str, Any] = json.loads(file.readline())
        if header["recording"] != 1 or header["grade"] not in get_args(Grade):
            raise ValueError("another version, or an unknown grade")
        return {name: header[name] for name in ("template", "unit", "grade", "device", "made")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: is no recording of a device ({error!r})") from error


def expected_of(path: Path) -> dict[str, float | None]:
    """What a recording's driver made of it; raises :class:`ConfigurationError` where it does not say."""
    try:
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        return {str(name): None if value is None else float(value) for name, value in last["expect"].items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigurationError(f"{path}: has no expected values ({error!r})") from error
