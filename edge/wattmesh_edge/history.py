"""A site's own record of the last days, minute by minute: for its page, and for whoever asks while the cloud is away."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from wattmesh_edge.image import SiteImage

MINUTE_NS = 60_000_000_000
KEEP_NS = 30 * 86_400 * 1_000_000_000
_AT_ONCE = 10
"""Minutes that are written together: a flash card lives longer, and a power cut costs ten minutes of a curve, not of a record."""
_WAITING_AT_MOST = 1440
"""Minutes that are kept in memory while the disk does not take them."""
QUANTITIES = ("grid_w", "pv_w", "battery_w", "load_w", "soc_percent")


@dataclass(frozen=True, slots=True)
class Minute:
    """Means over a minute; none where nothing was known in it."""

    time_ns: int
    """UTC of its start."""
    grid_w: float | None
    pv_w: float | None
    battery_w: float | None
    load_w: float | None
    soc_percent: float | None


class History:
    """Minute means in the gateway's database.

    Args:
        db: The gateway's database.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._minute_ns = 0
        self._sums = [0.0] * len(QUANTITIES)
        self._counts = [0] * len(QUANTITIES)
        self._waiting: list[Minute] = []
        with db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS minutes (time_ns INTEGER PRIMARY KEY, grid_w REAL, pv_w REAL, battery_w REAL,"
                " load_w REAL, soc_percent REAL)"
            )

    def note(self, image: SiteImage) -> None:
        """Take a cycle's image; raises ``sqlite3.Error`` where the disk does not take what waits, which then waits on."""
        minute_ns = image.time_ns - image.time_ns % MINUTE_NS
        if minute_ns != self._minute_ns:
            self._close_minute()
            self._minute_ns = minute_ns
        states = [one.soc_percent for one in image.batteries.values() if one.soc_percent is not None]
        grid = image.grid_power_w
        values = (
            None if grid is None else grid.value,
            image.pv_power_w,
            image.battery_power_w,
            image.load_power_w,
            sum(states) / len(states) if states else None,
        )
        for index, value in enumerate(values):
            if value is not None:
                self._sums[index] += value
                self._counts[index] += 1
        if len(self._waiting) >= _AT_ONCE:
            self.flush()

    def _close_minute(self) -> None:
        if any(self._counts):
            means = [total / count if count else None for total, count in zip(self._sums, self._counts, strict=True)]
            self._waiting.append(Minute(self._minute_ns, *means))
            del self._waiting[:-_WAITING_AT_MOST]
        self._sums, self._counts = [0.0] * len(QUANTITIES), [0] * len(QUANTITIES)

    def flush(self) -> None:
        """Write what waits; durable with the database's next commit."""
        self._db.executemany(
            "INSERT OR REPLACE INTO minutes VALUES (?, ?, ?, ?, ?, ?)",
            [(one.time_ns, one.grid_w, one.pv_w, one.battery_w, one.load_w, one.soc_percent) for one in self._waiting],
        )
        self._waiting.clear()

    def prune(self, now_ns: int) -> None:
        """Forget what is older than :data:`KEEP_NS`."""
        self._db.execute("DELETE FROM minutes WHERE time_ns < ?", (now_ns - KEEP_NS,))

    def between(self, first_ns: int, last_ns: int, step_ns: int = MINUTE_NS) -> list[Minute]:
        """Means over steps from ``first_ns`` on and before ``last_ns``, oldest first; the last minutes one by one."""
        found = read_history(self._db, first_ns, last_ns, step_ns)
        return found + [one for one in self._waiting if first_ns <= one.time_ns < last_ns]


def read_history(db: sqlite3.Connection, first_ns: int, last_ns: int, step_ns: int) -> list[Minute]:
    """Means over steps of what is on disk, oldest first."""
    means = ", ".join(f"AVG({name})" for name in QUANTITIES)
    rows = db.execute(
        f"SELECT time_ns - time_ns % ? AS step, {means} FROM minutes WHERE time_ns >= ? AND time_ns < ?"  # noqa: S608 - constants
        " GROUP BY step ORDER BY step",
        (step_ns, first_ns, last_ns),
    )
    return [Minute(*row) for row in rows]


def open_history(path: Path) -> sqlite3.Connection:
    """The database of a gateway that runs or not, to read only; raises ``sqlite3.Error``."""
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)
