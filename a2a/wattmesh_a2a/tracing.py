"""W3C trace context through the messages: what a handler sends belongs to the trace of what it handles."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol

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


class Spans(Protocol):
    """Who records what happens within a trace; the gateway has none."""

    def span(
        self, name: str, parent: str | None, links: Sequence[str], attributes: Mapping[str, str | int | float]
    ) -> AbstractContextManager[str]:
        """Record the body as a span under ``parent``; gives its own ``traceparent``."""
        ...


_spans: Spans | None = None
"""Of the process: a broker's thread has no context of its own to carry it."""


def record_with(spans: Spans | None) -> None:
    """Record spans from here on, in the whole process; called by its composition root."""
    global _spans
    _spans = spans


def current() -> str | None:
    """``traceparent`` of what is being handled."""
    return _current.get()


@contextlib.contextmanager
def span(name: str, *, links: Sequence[str] = (), **attributes: str | float) -> Iterator[None]:
    """What happens in the body, within the trace of what is being handled; nothing where nobody records."""
    if _spans is None:
        yield
        return
    with _spans.span(name, _current.get(), links, attributes) as own, within(own):
        yield


def of_batch(site: str, stream: str, sequence: int) -> str:
    """``traceparent`` of a telemetry batch: both ends know it from the batch's key, and nothing is sent for it."""
    digest = hashlib.sha256(f"{site}/{stream}/{sequence}".encode()).hexdigest()
    return f"00-{digest[:32]}-{digest[32:48]}-01"
