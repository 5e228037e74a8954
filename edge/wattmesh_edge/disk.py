"""Work that a full or broken disk may cost, and that never costs control."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable

log = logging.getLogger(__name__)


class DiskWork:
    """Runs what writes to disk; a failure is said once, and its recovery once.

    Args:
        counts: Failures are counted here, as ``record_failures``.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._failing: set[str] = set()

    @property
    def failing(self) -> bool:
        """Whether something could not be kept when it was tried last."""
        return bool(self._failing)

    def attempt(self, what: str, work: Callable[[], None]) -> bool:
        """Do ``work``; returns whether the disk took it. ``what`` names it in the log."""
        try:
            work()
        except (OSError, sqlite3.Error) as error:
            self._counts["record_failures"] += 1
            if not self._failing:
                log.error("%s cannot be kept (%s); control goes on", what, error)
            self._failing.add(what)
            return False
        if what in self._failing:
            self._failing.discard(what)
            if not self._failing:
                log.warning("records can be kept again")
        return True
