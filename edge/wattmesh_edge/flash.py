"""How often settings that a device keeps in flash were written, kept over restarts of the gateway."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, MutableMapping

log = logging.getLogger(__name__)

FLASH_TABLE = (
    "CREATE TABLE IF NOT EXISTS flash_writes (device TEXT, control TEXT, day INTEGER, writes INTEGER, "
    "PRIMARY KEY (device, control)) WITHOUT ROWID"
)


class FlashWrites(MutableMapping[str, tuple[int, int]]):
    """Control → day (UTC, days since 1970) and its writes, of one device.

    A disk that fails costs the memory of a restart and nothing else: control goes on.

    Args:
        db: The gateway's database, with :data:`FLASH_TABLE`.
        device: Its name at the site.
    """

    def __init__(self, db: sqlite3.Connection, device: str) -> None:
        self._db = db
        self._device = device
        self._said = False
        rows = db.execute("SELECT control, day, writes FROM flash_writes WHERE device = ?", (device,)).fetchall()
        self._kept = {str(control): (int(day), int(writes)) for control, day, writes in rows}

    def __getitem__(self, control: str) -> tuple[int, int]:
        return self._kept[control]

    def __setitem__(self, control: str, value: tuple[int, int]) -> None:
        self._kept[control] = value
        self._write("REPLACE INTO flash_writes VALUES (?, ?, ?, ?)", (self._device, control, *value))

    def __delitem__(self, control: str) -> None:
        del self._kept[control]
        self._write("DELETE FROM flash_writes WHERE device = ? AND control = ?", (self._device, control))

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            with self._db:
                self._db.execute(statement, values)
            self._said = False
        except sqlite3.Error as error:
            if not self._said:
                self._said = True
                log.error(
                    "the flash writes of %s cannot be kept (%s); they count until the next start", self._device, error
                )
