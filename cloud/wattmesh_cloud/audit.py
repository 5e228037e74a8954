"""Who did what and what came of it: one JSON line an entry, each with the hash of the one before; nothing is ever changed.

An entry that was edited, taken out, put in or moved breaks the chain behind it. A cut end is found against an anchor: the
last sequence and hash, noted somewhere else (:meth:`AuditLog.anchor`; the cloud's report holds it). With a key the hashes are
HMAC-SHA-256, so that whoever can write the file cannot make a chain anew.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wattmesh_a2a.errors import ConfigurationError, UnavailableError

_START = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier found."""

    entries: int
    """Whole entries before the first fault."""
    last_hash: str
    fault: str | None
    """None where the chain is whole."""


class AuditLog:
    """An append-only log with one writer; durable on return.

    Args:
        path: The file; its folder is made. A torn last line (a crash while writing) is cut; any other fault is refused.
        key: Of the hashes; none for a plain chain.
    """

    def __init__(self, path: Path, key: bytes | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._key = path, key
        self._lock = threading.Lock()
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        verdict = verify(whole, key)
        if verdict.fault is not None:
            raise ConfigurationError(f"{path}: {verdict.fault}; move it away as evidence, a new one will begin")
        self._sequence, self._last = verdict.entries, verdict.last_hash
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if len(whole) != len(content):
            os.ftruncate(self._file, len(whole))

    def write(
        self,
        time_ns: int,
        actor: str,
        action: str,
        outcome: str,
        detail: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> None:
        """Add an entry.

        Args:
            time_ns: UTC.
            actor: Who: ``operator:ann``, ``agent:market-supervisor``, ``site:home-1``.
            action: What: ``market.halt``, ``tool.historical-data``.
            outcome: ``done``, ``refused``, ``failed``.
            detail: More; no secrets, no measurements.

        Raises:
            UnavailableError: The disk does not take it; then what it was about has to be refused.
        """
        with self._lock:
            entry = {
                "sequence": self._sequence,
                "time_ns": time_ns,
                "actor": actor[:200],
                "action": action[:200],
                "outcome": outcome[:50],
                "detail": {key[:50]: _short(value) for key, value in list((detail or {}).items())[:20]},
                "before": self._last,
            }
            digest = _hash(entry, self._key)
            line = json.dumps({**entry, "hash": digest}, separators=(",", ":")).encode() + b"\n"
            size = os.fstat(self._file).st_size
            try:
                if os.write(self._file, line) != len(line):
                    raise OSError("the disk is full")
                os.fdatasync(self._file)
            except OSError as error:
                os.ftruncate(self._file, size)
                raise UnavailableError(f"{self._path}: {error}") from error
            self._sequence, self._last = self._sequence + 1, digest

    def anchor(self) -> dict[str, int | str]:
        """How many entries there are and the last one's hash, to be kept somewhere else."""
        with self._lock:
            return {"entries": self._sequence, "hash": self._last}

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)


def verify(content: bytes, key: bytes | None = None, anchor: Mapping[str, int | str] | None = None) -> Verdict:
    """Check a log's bytes from the start; with an anchor also that nothing before it is missing at the end."""
    last, count, fault, at_anchor = _START, 0, None, anchor is None or anchor["entries"] == 0
    for line in content.splitlines():
        try:
            entry = json.loads(line)
            digest = entry.pop("hash")
            right = hmac.compare_digest(str(digest), _hash(entry, key))
        except (ValueError, KeyError, AttributeError, TypeError):
            fault = f"entry {count} cannot be read"
            break
        if entry.get("sequence") != count or entry.get("before") != last:
            fault = f"entry {count} does not follow the one before: something was taken out, put in or moved"
            break
        if not right:
            fault = f"entry {count} was changed"
            break
        last, count = str(digest), count + 1
        at_anchor = at_anchor or (anchor is not None and (anchor["entries"], anchor["hash"]) == (count, last))
    if fault is None and not at_anchor:
        fault = "entries are missing at the end, or the whole log is another one than was anchored"
    return Verdict(entries=count, last_hash=last, fault=fault)


def _hash(entry: Mapping[str, object], key: bytes | None) -> str:
    content = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    if key is None:
        return hashlib.sha256(content).hexdigest()
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def _short(value: str | float | bool | None) -> str | int | float | bool | None:
    return value[:500] if isinstance(value, str) else value
