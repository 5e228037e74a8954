"""The market's inputs on disk, durable before they are acknowledged; replayed on start to the same state.

Entries that wait at the same time are one block: one write, one ``fdatasync``. A block is

    "WMJ2" · length of body u32 · CRC-32 u32 of all that follows · number of the first entry u64 · entries u32 · chain 16 B · body

little-endian, the body being entries of length u32 and JSON each, the chain being BLAKE2b-128 of the chain before and the body.
A block is written only after the one before is durable. Therefore a broken block with a whole one behind it is damage, and a
broken block at the end is a write that the machine did not finish: nobody was told of anything in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, UnavailableError

log = logging.getLogger(__name__)

_MAGIC = b"WMJ2"
_HEAD = struct.Struct("<4sIIQI16s")
_CHECKED_FROM = 12
_LENGTH = struct.Struct("<I")
_LONGEST = 1_000_000
_GROUP_BYTES = 8_000_000
_MARK_BYTES = 1_000_000
"""Between two places from which a reader may begin."""
START = hashlib.blake2b(b"wattmesh market journal", digest_size=16).digest()


def journal_path(state: Path, area: str) -> Path:
    """Where an area's journal stands in a cloud's state."""
    return state / f"market-{area}.journal"


@dataclass(frozen=True, slots=True)
class Block:
    """A whole block of a journal."""

    end: int
    """Where it ends in the file."""
    first: int
    """Number of its first entry, from 0."""
    bodies: tuple[bytes, ...]
    chain: bytes


class Journal:
    """An append-only file with a single writer, which a lock guards.

    Args:
        path: The file; its folder is made.

    Raises:
        ConfigurationError: Another process writes it, it is no journal, or a block in the middle is damaged: nothing is guessed
            about what followed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._lock()
            finish_take_over(path)
            self.torn = 0
            self._size, self.count, self.chain = 0, 0, START
            self._marks: list[tuple[int, int, bytes]] = []
            self._check()
            if self.torn:
                os.ftruncate(self._file, self._size)
                os.fsync(self._file)
                log.warning("%s: cut a torn end of %d bytes", path, self.torn)
            sync_folder(path.parent)
        except BaseException:
            os.close(self._file)
            raise
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._broken: OSError | None = None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"{self._path}: another process writes it; one market area has one writer"
            ) from error
        if not _names(self._path, self._file):
            raise ConfigurationError(
                f"{self._path}: another process has just taken it over; one market area has one writer"
            )

    def _check(self) -> None:
        with mapped(self._path) as content:
            marked = 0
            for block in read_blocks(self._path, content, 0, 0, START):
                self._size, self.chain = block.end, block.chain
                self.count = block.first + len(block.bodies)
                if block.end - marked >= _MARK_BYTES:
                    marked = block.end
                    self._marks.append((self.count, block.end, block.chain))
            self.torn = len(content) - self._size
            start = bytes(content[:4096])
        if self.torn and self._size == 0 and start.strip(b"\0") and start[:4] != _MAGIC[: len(start)]:
            raise ConfigurationError(
                f"{self._path}: no journal of a market (format 2); move it away or restore a backup"
            )

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def entries(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """All entries from number ``after`` on."""
        for block in self._blocks(after):
            for number, body in enumerate(block.bodies, block.first):
                if number >= after:
                    yield json.loads(body)

    def _blocks(self, after: int) -> Iterator[Block]:
        """The blocks from a mark on that stands before entry ``after``."""
        count, at, chain = max((mark for mark in self._marks if mark[0] <= after), default=(0, 0, START))
        with mapped(self._path) as content:
            yield from read_blocks(self._path, content, at, count, chain, base=0)

    def chain_at(self, count: int) -> str | None:
        """The chain, in hex, behind the block that ends with the ``count``-th entry; none when no block ends there."""
        if count == 0:
            return START.hex()
        for block in self._blocks(count - 1):
            if block.first + len(block.bodies) >= count:
                return block.chain.hex() if block.first + len(block.bodies) == count else None
        return None

    def append_now(self, entry: dict[str, Any]) -> None:
        """Write one entry and return when it is durable; blocks."""
        self._commit([_body(entry)])

    async def append(self, entry: dict[str, Any]) -> None:
        """Return when the entry is durable, together with all that arrived meanwhile.

        Raises:
            UnavailableError: The disk does not take it; nothing of it stays in the file.
        """
        await self.append_body(_body(entry))

    async def append_body(self, body: bytes) -> None:
        """As :meth:`append`, of an entry that is JSON already."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write_waiting(), name="journal")
        await future

    async def _write_waiting(self) -> None:
        """Group after group, in a task of its own: a caller that is cancelled takes nobody with it.

        Callers wake in the order of their entries, so what they then do happens in the journal's order.
        """
        while self._waiting:
            group, self._waiting = self._next_group()
            failure: UnavailableError | None = None
            try:
                await asyncio.to_thread(self._commit, [body for body, _ in group])
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

    def _next_group(self) -> tuple[list[tuple[bytes, asyncio.Future[None]]], list[tuple[bytes, asyncio.Future[None]]]]:
        size = 0
        for index, (body, _) in enumerate(self._waiting):
            size += len(body)
            if size > _GROUP_BYTES:
                return self._waiting[:index], self._waiting[index:]
        return self._waiting, []

    def _commit(self, bodies: Sequence[bytes]) -> None:
        content, chain = _framed(bodies, self.count, self.chain)
        self._write(content)
        self.count, self.chain = self.count + len(bodies), chain

    def _write(self, content: bytes) -> None:
        """All of it, durable, or nothing of it.

        After a failed ``fdatasync`` nobody knows what is on the disk (the kernel may have dropped the pages), so nothing is
        written any more until a restart has read the file again. The same once the file's name is another file's: what was
        written since then is in no journal, and nobody is told that it was (:func:`take_over`).
        """
        if self._broken is not None:
            raise self._broken
        try:
            _write_all(self._file, content)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        try:
            os.fdatasync(self._file)
            if not _names(self._path, self._file):
                raise OSError(errno.ESTALE, "another writer has taken over; end this one")
        except OSError as error:
            self._broken = error
            raise
        self._size += len(content)

    def check_ours(self) -> None:
        """Raises :class:`ConfigurationError` when another writer has taken over: then there is nothing left to do here."""
        if not _names(self._path, self._file):
            raise ConfigurationError(f"{self._path}: another writer has taken over; this process ends")

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._file)


class Follower:
    """Reads a journal while another process writes it: a standby's ears.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.count, self.chain = 0, START

    def read(self) -> list[dict[str, Any]]:
        """The entries that have come since the last call. A block under way is left for the next one.

        Raises:
            ConfigurationError: The journal is damaged, or another one than before.
        """
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._at:
                raise ConfigurationError(f"{self._path}: shorter than it was; begin again")
            file.seek(self._at)
            content = file.read()
        found: list[dict[str, Any]] = []
        start = self._at
        for block in read_blocks(self._path, content, start, self.count, self.chain):
            found += [json.loads(body) for body in block.bodies]
            self._at, self.chain = block.end, block.chain
            self.count = block.first + len(block.bodies)
        return found


def has_writer(path: Path) -> bool:
    """Whether a living process holds a journal open for writing."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(file)


def take_over(path: Path) -> None:
    """Fence the writer of a journal, whether it is dead, hung or alive: from here on nothing that it writes is acknowledged.

    The journal's name becomes another file's, with the same blocks. A writer looks after each ``fdatasync``, and before it
    acknowledges, whether the name is still its file's. So whatever it has acknowledged stood in its file before the name
    changed, and is read from there afterwards. A process that dies in between is made up for by whoever opens the journal next.

    Raises:
        ConfigurationError: There is no journal, it is damaged, or another take-over is under way.
    """
    if not path.exists():
        raise ConfigurationError(f"{path}: there is no such journal")
    draft, old = path.with_suffix(".draft-journal"), path.with_suffix(".superseded")
    file = os.open(draft, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(f"{path}: another process takes it over") from error
        finish_take_over(path)
        content = path.read_bytes()
        os.ftruncate(file, 0)
        _write_all(file, content[: _whole(path, content)])
        os.fsync(file)
        os.link(path, old)
        sync_folder(path.parent)
        draft.replace(path)
        sync_folder(path.parent)
        finish_take_over(path)
    finally:
        os.close(file)


def finish_take_over(path: Path) -> None:
    """Bring over what a fenced writer has acknowledged at the last moment; its file is kept beside the journal."""
    old = path.with_suffix(".superseded")
    if not old.exists():
        return
    if old.samefile(path):  # ended before the name changed: nobody was fenced
        old.unlink()
        return
    content, have = old.read_bytes(), path.read_bytes()
    have = have[: _whole(path, have)]
    whole = content[: _whole(old, content)]
    if not whole.startswith(have):
        raise ConfigurationError(f"{path}: does not go on from {old}, which it took over; look at both")
    file = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(file, len(have))
        os.lseek(file, 0, os.SEEK_END)
        _write_all(file, whole[len(have) :])
        os.fsync(file)
    finally:
        os.close(file)
    old.replace(path.with_suffix(".fenced"))
    sync_folder(path.parent)


def _names(path: Path, file: int) -> bool:
    """Whether a name is still this open file's."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(file)
    return (named.st_ino, named.st_dev) == (own.st_ino, own.st_dev)


def _whole(path: Path, content: bytes) -> int:
    """Bytes of whole blocks."""
    end = 0
    for block in read_blocks(path, content, 0, 0, START):
        end = block.end
    return end


def _write_all(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a new file is found after a power cut only then."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _body(entry: dict[str, Any]) -> bytes:
    body = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > _LONGEST:
        raise InvalidMessageError(f"a journal entry of {len(body)} bytes is over {_LONGEST}")
    return body


def _framed(bodies: Sequence[bytes], first: int, chain: bytes) -> tuple[bytes, bytes]:
    body = b"".join([part for one in bodies for part in (_LENGTH.pack(len(one)), one)])
    chain = hashlib.blake2b(chain + body, digest_size=16).digest()
    head = _HEAD.pack(_MAGIC, len(body), 0, first, len(bodies), chain)
    crc = zlib.crc32(body, zlib.crc32(head[_CHECKED_FROM:]))
    return _HEAD.pack(_MAGIC, len(body), crc, first, len(bodies), chain) + body, chain


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """A file's bytes, which need no memory of ours however large it is."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def read_blocks(
    path: Path, content: bytes | mmap.mmap, start: int, count: int, chain: bytes, *, base: int | None = None
) -> Iterator[Block]:
    """The whole blocks from byte ``start`` of the file on.

    Args:
        path: For messages.
        content: The file from byte ``base`` on; from ``start`` on where none is given.
        start: Where a block begins.
        count: Number of its first entry.
        chain: Of the blocks before.
        base: See ``content``.

    Raises:
        ConfigurationError: Something in the middle is broken, or a block does not follow the one before.
    """
    base = start if base is None else base
    at = start - base
    while at < len(content):
        block = _block(content, at)
        if block is None:
            if _whole_block_after(content, at):
                raise ConfigurationError(
                    f"{path}: damaged at byte {base + at}, with whole entries behind it; restore it from a backup"
                )
            return
        body = content[at + _HEAD.size : block.end]
        if block.first != count or block.chain != hashlib.blake2b(chain + body, digest_size=16).digest():
            raise ConfigurationError(
                f"{path}: damaged at byte {base + at}, this block does not follow the one before; restore it from a backup"
            )
        yield Block(base + block.end, block.first, block.bodies, block.chain)
        at, count, chain = block.end, count + len(block.bodies), block.chain


def _block(content: bytes | mmap.mmap, at: int) -> Block | None:
    """The block that begins here; none when it is not whole."""
    if at + _HEAD.size > len(content):
        return None
    magic, length, crc, first, count, chain = _HEAD.unpack_from(content, at)
    end = at + _HEAD.size + length
    if magic != _MAGIC or end > len(content) or zlib.crc32(memoryview(content)[at + _CHECKED_FROM : end]) != crc:
        return None
    bodies = []
    here = at + _HEAD.size
    for _ in range(count):
        if here + _LENGTH.size > end:
            return None
        (size,) = _LENGTH.unpack_from(content, here)
        bodies.append(content[here + _LENGTH.size : here + _LENGTH.size + size])
        here += _LENGTH.size + size
    return Block(end, first, tuple(bodies), chain) if here == end and count else None


def _whole_block_after(content: bytes | mmap.mmap, at: int) -> bool:
    """Whether a block that is whole stands anywhere behind a broken place: then it is no torn end."""
    start = content.find(_MAGIC, at + 1)
    while start != -1:
        if _block(content, start) is not None:
            return True
        start = content.find(_MAGIC, start + 1)
    return False
