"""The market's inputs on disk, durable before they are acknowledged; replayed on start to the same state.

Each entry: length (u32), CRC-32 (u32), JSON. Entries that wait at the same time are made durable by one ``fdatasync``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, UnavailableError

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<II")
_LONGEST = 1_000_000


class Journal:
    """An append-only file with a single writer.

    Args:
        path: The file; its folder is made.

    Raises:
        ConfigurationError: An entry in the middle is damaged: nothing is guessed about what followed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.torn = 0
        self._size = self._check()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if self.torn:
            os.ftruncate(self._file, self._size)
            log.warning("%s: cut a torn end of %d bytes", path, self.torn)
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    def _check(self) -> int:
        content = self._path.read_bytes() if self._path.exists() else b""
        at = 0
        while at < len(content):
            body = _entry(content, at)
            if body is None:
                if _whole_entry_after(content, at):
                    raise ConfigurationError(
                        f"{self._path}: damaged at byte {at}, with whole entries behind it; restore it from a backup"
                    )
                self.torn = len(content) - at
                return at
            at += _HEAD.size + len(body)
        return at

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries from the start."""
        content = self._path.read_bytes()
        at = 0
        while at < len(content):
            body = _entry(content, at)
            if body is None:
                return
            yield json.loads(body)
            at += _HEAD.size + len(body)

    def append_now(self, entry: dict[str, Any]) -> None:
        """Write one entry and return when it is durable; blocks."""
        self._write(_framed(entry))

    async def append(self, entry: dict[str, Any]) -> None:
        """Return when the entry is durable, together with all that arrived meanwhile.

        Raises:
            UnavailableError: The disk does not take it; nothing of it stays in the file.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((_framed(entry), future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write_waiting(), name="journal")
        await future

    async def _write_waiting(self) -> None:
        """Group after group, in a task of its own: a caller that is cancelled takes nobody with it.

        Callers wake in the order of their entries, so what they then do happens in the journal's order.
        """
        while self._waiting:
            group, self._waiting = self._waiting, []
            failure: UnavailableError | None = None
            try:
                await asyncio.to_thread(self._write, b"".join(frame for frame, _ in group))
            except OSError as error:
                failure = UnavailableError(f"{self._path}: {error.strerror}")
                failure.__cause__ = error
            for _, waiting in group:
                if waiting.done():
                    continue
                if failure is None:
                    waiting.set_result(None)
                else:
                    waiting.set_exception(failure)

    def _write(self, content: bytes) -> None:
        """All of it, durable, or nothing of it."""
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(self._file, left) :]
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(content)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)


def _framed(entry: dict[str, Any]) -> bytes:
    body = json.dumps(entry, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    if len(body) > _LONGEST:
        raise InvalidMessageError(f"a journal entry of {len(body)} bytes is over {_LONGEST}")
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def _entry(content: bytes, at: int) -> bytes | None:
    if at + _HEAD.size > len(content):
        return None
    length, crc = _HEAD.unpack_from(content, at)
    body = content[at + _HEAD.size : at + _HEAD.size + length]
    return body if 0 < length <= _LONGEST and len(body) == length and zlib.crc32(body) == crc else None


def _whole_entry_after(content: bytes, at: int) -> bool:
    """Whether an entry that is whole stands anywhere behind a damaged place: then it is no torn end."""
    start = content.find(b'{"', at)  # every entry's JSON begins so: only there is it worth to look
    while start != -1:
        if start - _HEAD.size > at and _entry(content, start - _HEAD.size) is not None:
            return True
        start = content.find(b'{"', start + 1)
    return False
