"""A message that is larger than one publish travels in parts, and is put together again within stated bounds.

A part: magic ``WMP1``, the first 16 bytes of the whole's SHA-256, index and count (u16 each, big endian), the whole's length
(u32), then its bytes. A repetition of the message has the same parts, so that parts of several attempts complete each other. The
parts themselves are not believed: what is put together must have the hash, and then goes through every check of a message.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass, field

from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.topics import MAX_MESSAGE_BYTES

MAGIC = b"WMP1"
_HEAD = struct.Struct(">4s16sHHI")
_OPEN_AT_MOST = 32
_BYTES_AT_MOST = 4 * MAX_MESSAGE_BYTES
_PARTS_AT_MOST = 1000


def split(payload: bytes, most: int) -> list[bytes]:
    """The payload itself when it fits into ``most`` bytes, else its parts.

    Raises:
        InvalidMessageError: It is too large even in parts.
    """
    if len(payload) <= most:
        return [payload]
    room = most - _HEAD.size
    count = -(-len(payload) // room)
    if len(payload) > MAX_MESSAGE_BYTES or count > _PARTS_AT_MOST:
        raise InvalidMessageError(f"a message of {len(payload)} bytes is over {MAX_MESSAGE_BYTES}")
    digest = hashlib.sha256(payload).digest()[:16]
    return [
        _HEAD.pack(MAGIC, digest, index, count, len(payload)) + payload[index * room : (index + 1) * room]
        for index in range(count)
    ]


@dataclass(slots=True)
class _Open:
    count: int
    size: int
    parts: dict[int, bytes] = field(default_factory=dict)
    held: int = 0


class Assembler:
    """Puts parts together; the oldest unfinished message makes room for new ones."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, bytes], _Open] = OrderedDict()
        self._held = 0
        self.given_up = 0
        """Unfinished messages that had to make room."""

    def take(self, topic: str, payload: bytes) -> bytes | None:
        """The whole message, or none while parts are missing.

        Raises:
            InvalidMessageError: A part that contradicts itself or the others.
        """
        if payload[:4] != MAGIC:
            return payload
        if len(payload) <= _HEAD.size:
            raise InvalidMessageError("a part without content")
        _, digest, index, count, size = _HEAD.unpack_from(payload)
        if not (1 < count <= _PARTS_AT_MOST and index < count and size <= MAX_MESSAGE_BYTES):
            raise InvalidMessageError("a part with impossible numbers")
        key = (topic, digest)
        whole = self._open.setdefault(key, _Open(count, size))
        body = payload[_HEAD.size :]
        if (whole.count, whole.size) != (count, size) or whole.held + len(body) > size + len(
            whole.parts.get(index, b"")
        ):
            self._close(key)
            raise InvalidMessageError("parts that contradict each other")
        self._held += len(body) - len(whole.parts.get(index, b""))
        whole.held += len(body) - len(whole.parts.get(index, b""))
        whole.parts[index] = body
        self._open.move_to_end(key)
        if len(whole.parts) == count:
            self._close(key)
            message = b"".join(whole.parts[at] for at in range(count))
            if len(message) != size or hashlib.sha256(message).digest()[:16] != digest:
                raise InvalidMessageError("parts that do not make the message they announced")
            return message
        while len(self._open) > _OPEN_AT_MOST or self._held > _BYTES_AT_MOST:
            self._close(next(iter(self._open)))
            self.given_up += 1
        return None

    def _close(self, key: tuple[str, bytes]) -> None:
        self._held -= self._open.pop(key).held
