"""Passwords by Argon2id (RFC 9106, the library's second recommended setting: 64 MiB, 3 passes, 4 lanes)."""

from __future__ import annotations

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from wattmesh_a2a.errors import InvalidMessageError

LEAST = 12
MOST = 200

_hasher = PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=4)
_one_at_a_time = asyncio.Semaphore(2)
"""A flood of logins may cost two cores' time for 64 MiB each, never the machine's memory."""
_nobody = _hasher.hash("nobody has this password")


def hashed(password: str) -> str:
    """The hash of a new password; raises :class:`InvalidMessageError` for one that is too short, long or plain."""
    if not LEAST <= len(password) <= MOST:
        raise InvalidMessageError(f"a password has {LEAST} to {MOST} characters")
    if len(set(password)) < 5:
        raise InvalidMessageError("a password needs at least five different characters")
    return _hasher.hash(password)


async def matches(password: str, known: str | None) -> bool:
    """Whether a password is the right one. Without an account it takes as long and is false."""
    async with _one_at_a_time:
        right = await asyncio.to_thread(_verify, known or _nobody, password[: MOST + 1])
    return right and known is not None


def _verify(known: str, password: str) -> bool:
    try:
        return _hasher.verify(known, password)
    except (VerificationError, InvalidHashError):
        return False
