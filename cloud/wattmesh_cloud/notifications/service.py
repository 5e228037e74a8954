"""Keeps what is to be told until it is delivered, with pauses that grow; what nobody takes within a day is given up, and said."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from dataclasses import asdict
from pathlib import Path

from wattmesh_a2a.alarms import Alarm, Severity
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.errors import ConfigurationError, WattmeshError

from wattmesh_cloud.notifications import mail, webhook
from wattmesh_cloud.notifications.config import Filter, NotificationsModel

log = logging.getLogger(__name__)

_RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}
_PAUSES_S = (5, 30, 120, 600, 1800, 3600)
_GIVE_UP_NS = 86_400 * NS_PER_S
_MOST = 2000
_LOOK_S = 2.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS outgoing(
  id INTEGER PRIMARY KEY, receiver TEXT NOT NULL, alarm TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0, due_ns INTEGER NOT NULL,
  made_ns INTEGER NOT NULL);
"""


class Notifications:
    """See the module.

    Args:
        model: Who is told.
        path: Its SQLite file.
        real: The machine's clock: people live in it.
        link: Address of the console, for letters; none where nobody outside can open it.
    """

    def __init__(self, model: NotificationsModel, path: Path, real: Clock, link: str | None = None) -> None:
        self._model, self._real, self._link = model, real, link
        self._secrets = [_secret(one.secret) for one in model.webhooks]
        self._passwords = [None if one.password is None else _secret(one.password).decode() for one in model.mail]
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._troubled: set[str] = set()
        self.counts = {"delivered": 0, "given_up": 0}

    def on_alarm(self, alarm: Alarm) -> None:
        """Note an alarm for all who want it; returns at once."""
        now = self._real.utc_ns()
        for receiver, wanted in self._receivers():
            if _RANK[alarm.severity] < _RANK[Severity(wanted.least)] or (
                wanted.sites and alarm.site_id not in wanted.sites
            ):
                continue
            row = (receiver, json.dumps(asdict(alarm)), now, now)
            self._db.execute("INSERT INTO outgoing(receiver, alarm, due_ns, made_ns) VALUES(?, ?, ?, ?)", row)
        self._db.execute("DELETE FROM outgoing WHERE id <= (SELECT MAX(id) FROM outgoing) - ?", (_MOST,))

    def _receivers(self) -> list[tuple[str, Filter]]:
        hooks: list[tuple[str, Filter]] = [
            (f"webhook {number}", one) for number, one in enumerate(self._model.webhooks)
        ]
        return hooks + [(f"mail {number}", one) for number, one in enumerate(self._model.mail)]

    def waiting(self) -> int:
        """How many are still to be delivered."""
        return int(self._db.execute("SELECT COUNT(*) FROM outgoing").fetchone()[0])

    async def run(self) -> None:
        """Deliver, for ever, in real time."""
        while True:
            await self.deliver()
            await asyncio.sleep(_LOOK_S)

    async def deliver(self) -> None:
        """Try what is due, a receiver's oldest first; one that does not answer keeps no other waiting."""
        now = self._real.utc_ns()
        rows = self._db.execute(
            "SELECT id, receiver, alarm, tries, made_ns FROM outgoing WHERE due_ns<=? ORDER BY id LIMIT 100", (now,)
        ).fetchall()
        by: dict[str, list[tuple[int, str, str, int, int]]] = {}
        for row in rows:
            by.setdefault(row[1], []).append(row)
        await asyncio.gather(*(self._deliver_to(receiver, mine) for receiver, mine in by.items()))

    async def _deliver_to(self, receiver: str, rows: list[tuple[int, str, str, int, int]]) -> None:
        for number, _, text, tries, made_ns in rows:
            try:
                await self._send(receiver, number, text)
            except WattmeshError as error:
                now = self._real.utc_ns()
                if not error.retryable or now - made_ns >= _GIVE_UP_NS:
                    log.error("%s is not told of an alarm: %s", receiver, error)
                    self._db.execute("DELETE FROM outgoing WHERE id=?", (number,))
                    self.counts["given_up"] += 1
                    continue
                if receiver not in self._troubled:
                    self._troubled.add(receiver)
                    log.warning("%s does not take alarms now, tried again: %s", receiver, error)
                pause = _PAUSES_S[min(tries, len(_PAUSES_S) - 1)] * NS_PER_S
                self._db.execute(
                    "UPDATE outgoing SET tries=tries+1, due_ns=? WHERE receiver=? AND due_ns<=?",
                    (now + pause, receiver, now),
                )
                return
            self._db.execute("DELETE FROM outgoing WHERE id=?", (number,))
            self.counts["delivered"] += 1
            if receiver in self._troubled:
                self._troubled.discard(receiver)
                log.warning("%s takes alarms again", receiver)

    async def _send(self, receiver: str, number: int, text: str) -> None:
        kind, _, index = receiver.partition(" ")
        at = int(index)
        alarm = _alarm(text)
        if kind == "webhook":
            if at >= len(self._model.webhooks):
                raise ConfigurationError("this receiver stands in the file no more")
            body = json.dumps(
                {"type": "alarm.cleared" if alarm.cleared_ns else "alarm.raised", "data": asdict(alarm)}
            ).encode()
            seconds = self._real.utc_ns() // NS_PER_S
            await webhook.post(self._model.webhooks[at], self._secrets[at], f"wattmesh-{number}", seconds, body)
            return
        if at >= len(self._model.mail):
            raise ConfigurationError("this receiver stands in the file no more")
        link = None if self._link is None else f"{self._link}/site/{alarm.site_id}"
        message = mail.letter(self._model.mail[at], alarm, self._real.utc_ns() / NS_PER_S, link)
        await asyncio.to_thread(mail.send, self._model.mail[at], self._passwords[at], message)

    def close(self) -> None:
        """Release the file."""
        self._db.close()


def _alarm(text: str) -> Alarm:
    data = json.loads(text)
    return Alarm(**{**data, "severity": Severity(data["severity"])})


def _secret(path: Path) -> bytes:
    try:
        found = path.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    if not found:
        raise ConfigurationError(f"{path}: holds no secret")
    return found
