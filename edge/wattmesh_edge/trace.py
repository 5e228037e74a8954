"""The decision trace: for any moment, what was decided, by whom, and what limited it. Kept when it changes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from wattmesh_a2a.control import Decision

_CHANGE_W = 50.0
"""A target that moves less under the same rule is the same decision."""
KEEP_NS = 90 * 86_400 * 1_000_000_000


class DecisionTrace:
    """Decisions on disk.

    Args:
        db: The gateway's database.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._last: dict[str, tuple[Decision, str]] = {}
        with db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS decisions (asset TEXT, time_ns INTEGER, target_w REAL, decided_by TEXT,"
                " limited_by TEXT, requested_w REAL, remaining_w REAL, outcome TEXT, PRIMARY KEY (asset, time_ns))"
                " WITHOUT ROWID"
            )
            columns = {row[1] for row in db.execute("PRAGMA table_info(decisions)")}
            if "conflicts" not in columns:  # a database of an older version
                db.execute("ALTER TABLE decisions ADD COLUMN conflicts TEXT NOT NULL DEFAULT ''")

    def note(self, decision: Decision, outcome: str) -> bool:
        """Keep a decision if it differs from the last one; returns whether it did."""
        last = self._last.get(decision.asset_id)
        if last is not None and last[1] == outcome and not _differs(last[0], decision):
            return False
        self._db.execute(
            "INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                decision.asset_id, decision.time_ns, decision.target_w, decision.decided_by, decision.limited_by,
                decision.requested_w, decision.remaining_w, outcome, "; ".join(decision.conflicts),
            ),
        )  # fmt: skip
        self._last[decision.asset_id] = (decision, outcome)
        return True

    def prune(self, now_ns: int) -> None:
        """Forget what is older than :data:`KEEP_NS`."""
        self._db.execute("DELETE FROM decisions WHERE time_ns < ?", (now_ns - KEEP_NS,))

    def commit(self) -> None:
        """Make what was noted durable; once a cycle at most."""
        if self._db.in_transaction:
            self._db.commit()


def why(path: Path, time_ns: int) -> list[str]:
    """What was in force at a moment, a line an asset."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    lines = []
    for (asset,) in db.execute("SELECT DISTINCT asset FROM decisions").fetchall():
        row = db.execute(
            "SELECT time_ns, target_w, decided_by, limited_by, requested_w, remaining_w, outcome, conflicts FROM decisions"
            " WHERE asset = ? AND time_ns <= ? ORDER BY time_ns DESC LIMIT 1",
            (asset, time_ns),
        ).fetchone()
        if row is None:
            continue
        since, target, by, limit, requested, remaining, outcome, conflicts = row
        text = f"{asset}: {target:.0f} W by {by}, for {(time_ns - since) / 1e9:.0f} s ({outcome})"
        if limit:
            text += f"; {requested:.0f} W were asked for, {limit} left {remaining:.0f} W unmet"
        if conflicts:
            text += f"; conflict: {conflicts}"
        lines.append(text)
    db.close()
    return lines


def _differs(one: Decision, other: Decision) -> bool:
    if (one.decided_by, one.limited_by, one.conflicts) != (other.decided_by, other.limited_by, other.conflicts):
        return True
    return abs((one.target_w or 0.0) - (other.target_w or 0.0)) > _CHANGE_W
