"""How often settings that a device keeps in flash were written, kept over restarts of the gateway."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, MutableMapping

FLASH_TABLE = (
    "CREATE TABLE IF NOT EXISTS flash_writes (device TEXT, control TEXT, day INTEGER, writes INTEGER, "
    "PRIMARY KEY (device, control)) WITHOUT ROWID"
)


class FlashWrites(MutableMapping[str, tuple[int, int]]):
    """Control → day (UTC, days since 1970) and its writes, of one device.

    Args:
        db: The gateway's database, with :data:`FLASH_TABLE`.
        device: Its name at the site.
    """

    def __init__(self, db: sqlite3.Connection, device: str) -> None:
        self._db = db
        self._device = device

    def __getitem__(self, control: str) -> tuple[int, int]:
        row = self._db.execute(
            "SELECT day, writes FROM flash_writes WHERE device = ? AND control = ?", (self._device, control)
        ).fetchone()
        if row is None:
            raise KeyError(control)
        return int(row[0]), int(row[1])

    def __setitem__(self, control: str, value: tuple[int, int]) -> None:
        with self._db:
            self._db.execute("REPLACE INTO flash_writes VALUES (?, ?, ?, ?)", (self._device, control, *value))

    def __delitem__(self, control: str) -> None:
        with self._db:
            self._db.execute("DELETE FROM flash_writes WHERE device = ? AND control = ?", (self._device, control))

    def __iter__(self) -> Iterator[str]:
        rows = self._db.execute("SELECT control FROM flash_writes WHERE device = ?", (self._device,)).fetchall()
        return iter([str(row[0]) for row in rows])

    def __len__(self) -> int:
        return sum(1 for _ in self)
