"""W3C trace context through the messages: what a handler sends belongs to the trace of what it handles."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator
from contextvars import ContextVar

_SHAPE = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}\Z")
_current: ContextVar[str | None] = ContextVar("wattmesh_traceparent", default=None)


def child() -> str:
    """``traceparent`` of something new: a child of what is being handled, or the root of a trace."""
    found = _SHAPE.match(_current.get() or "")
    trace = found.group(1) if found else f"{random.getrandbits(128) | 1:032x}"
    return f"00-{trace}-{random.getrandbits(64) | 1:016x}-01"


@contextlib.contextmanager
def within(traceparent: str | None) -> Iterator[None]:
    """What is sent in the body belongs to this trace; anything that is no ``traceparent`` starts a new one."""
    token = _current.set(traceparent)
    try:
        yield
    finally:
        _current.reset(token)
