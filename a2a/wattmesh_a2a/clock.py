"""Clocks are injected: the same code runs on the system's time, in virtual time and in simulated time.

UTC nanoseconds at the boundaries, monotonic nanoseconds inside loops. A *runner* is a periodic loop that simulated time
has to wait for; every loop that a composition root starts enters :meth:`Clock.runner` and sleeps only on the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from wattmesh_a2a.errors import UnavailableError

NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """What every loop is given instead of ``time``."""

    def utc_ns(self) -> int:
        """Wall clock, nanoseconds since 1970-01-01T00:00:00Z; may jump."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds from an arbitrary origin; never goes back."""
        ...

    async def sleep_until_ns(self, monotonic_ns: int) -> None:
        """Return when :meth:`monotonic_ns` has reached ``monotonic_ns``; at once when it already has."""
        ...

    def runner(self) -> contextlib.AbstractContextManager[None]:
        """Declare the body to be a loop that simulated time waits for; it sleeps only in :meth:`sleep_until_ns`."""
        ...


class SystemClock:
    """The machine's own time."""

    def utc_ns(self) -> int:
        """See :class:`Clock`."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """See :class:`Clock`."""
        return time.monotonic_ns()

    async def sleep_until_ns(self, monotonic_ns: int) -> None:
        """See :class:`Clock`."""
        await asyncio.sleep(max(0, monotonic_ns - time.monotonic_ns()) / NS_PER_S)

    @contextlib.contextmanager
    def runner(self) -> Iterator[None]:
        """See :class:`Clock`; system time waits for nobody."""
        yield


class _Sleepers:
    """Futures ordered by the time at which they wake, and the count of runners that are awake."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, asyncio.Future[None], bool]] = []
        self._order = itertools.count()
        self._runner_tasks: set[asyncio.Task[object] | None] = set()
        self.runners_awake = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @contextlib.contextmanager
    def runner(self) -> Iterator[None]:
        task = asyncio.current_task()
        self._runner_tasks.add(task)
        self._wake()
        try:
            yield
        finally:
            self._runner_tasks.discard(task)
            self._rest()

    def _wake(self) -> None:
        self.runners_awake += 1
        self.idle.clear()

    def _rest(self) -> None:
        self.runners_awake -= 1
        if self.runners_awake == 0:
            self.idle.set()

    async def sleep(self, until_ns: int) -> None:
        is_runner = asyncio.current_task() in self._runner_tasks
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (until_ns, next(self._order), future, is_runner))
        if is_runner:
            self._rest()
        try:
            await future
        except asyncio.CancelledError:
            if is_runner and future.cancelled():  # a released future was counted when it was released
                self._wake()
            raise

    def release(self, now_ns: int) -> None:
        """Wake all that sleep until ``now_ns`` or before, in order."""
        while self._heap and self._heap[0][0] <= now_ns:
            _, _, future, is_runner = heapq.heappop(self._heap)
            if future.done():
                continue
            if is_runner:
                self._wake()
            future.set_result(None)

    def next_ns(self) -> int | None:
        """The earliest time anybody sleeps until, or none."""
        while self._heap and self._heap[0][2].done():
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


class ManualClock:
    """Virtual time for tests: it moves only when told, and waits until every runner rests before it moves on.

    UTC and monotonic share one counter; ``utc_offset_ns`` can be changed to simulate a wall clock that jumps.
    """

    def __init__(self, utc_ns: int = 1_700_000_000 * NS_PER_S) -> None:
        self._monotonic_ns = 0
        self.utc_offset_ns = utc_ns
        self._sleepers = _Sleepers()

    def utc_ns(self) -> int:
        """See :class:`Clock`."""
        return self._monotonic_ns + self.utc_offset_ns

    def monotonic_ns(self) -> int:
        """See :class:`Clock`."""
        return self._monotonic_ns

    async def sleep_until_ns(self, monotonic_ns: int) -> None:
        """See :class:`Clock`."""
        if monotonic_ns > self._monotonic_ns:
            await self._sleepers.sleep(monotonic_ns)
        else:
            await asyncio.sleep(0)

    def runner(self) -> contextlib.AbstractContextManager[None]:
        """See :class:`Clock`."""
        return self._sleepers.runner()

    def set_ns(self, monotonic_ns: int) -> None:
        """Jump to ``monotonic_ns`` without running anybody: for synchronous tests."""
        self._monotonic_ns = max(self._monotonic_ns, monotonic_ns)

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, waking every sleeper at exactly its own time."""
        target = self._monotonic_ns + round(seconds * NS_PER_S)
        await self._settle()
        while (following := self._sleepers.next_ns()) is not None and following <= target:
            self._monotonic_ns = max(self._monotonic_ns, following)
            self._sleepers.release(self._monotonic_ns)
            await self._settle()
        self._monotonic_ns = target

    async def _settle(self) -> None:
        await self._sleepers.idle.wait()
        for _ in range(20):  # callbacks and tasks without a runner get their turns
            await asyncio.sleep(0)
        await self._sleepers.idle.wait()


class SteppedClock:
    """Simulated time handed out by a time server (``wattmesh_simulators.timeserver``) in steps.

    Between two steps time stands still; a step comes when every process that takes part has answered that its runners
    rest. UTC and monotonic are the same simulated counter, which never goes back.

    The protocol is a line of JSON each way over a loopback TCP connection: the client says ``{"name": …}``, the server
    answers ``{"now_ns": …}`` and then sends ``{"now_ns": …}`` for every step, each answered by ``{"done_ns": …}``.
    """

    def __init__(self, name: str, host: str, port: int) -> None:
        self.name = name
        self._host = host
        self._port = port
        self._now_ns = 0
        self._sleepers = _Sleepers()
        self._task: asyncio.Task[None] | None = None
        self.lost = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, name: str, host: str, port: int) -> AsyncIterator[SteppedClock]:
        """Join the time server at ``host:port``; raises :class:`UnavailableError` when nobody answers."""
        clock = cls(name, host, port)
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(json.dumps({"name": name}).encode() + b"\n")
            first = json.loads(await reader.readline())
        except (OSError, ValueError) as error:
            raise UnavailableError(f"no time server answers at {host}:{port} ({error})") from error
        clock._now_ns = int(first["now_ns"])
        clock._task = asyncio.create_task(clock._follow(reader, writer), name="stepped-clock")
        try:
            yield clock
        finally:
            clock._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await clock._task
            writer.close()

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self._now_ns = max(self._now_ns, int(json.loads(line)["now_ns"]))
                self._sleepers.release(self._now_ns)
                await self._sleepers.idle.wait()
                writer.write(b'{"done_ns": %d}\n' % self._now_ns)
        except OSError:
            pass
        finally:
            self.lost.set()

    def utc_ns(self) -> int:
        """See :class:`Clock`."""
        return self._now_ns

    def monotonic_ns(self) -> int:
        """See :class:`Clock`."""
        return self._now_ns

    async def sleep_until_ns(self, monotonic_ns: int) -> None:
        """See :class:`Clock`."""
        if monotonic_ns > self._now_ns:
            await self._sleepers.sleep(monotonic_ns)
        else:
            await asyncio.sleep(0)

    def runner(self) -> contextlib.AbstractContextManager[None]:
        """See :class:`Clock`."""
        return self._sleepers.runner()


@contextlib.asynccontextmanager
async def open_clock(name: str, address: str | None) -> AsyncIterator[Clock]:
    """The clock a process runs on: the system's, or with ``address`` (``host:port``) that of a time server."""
    if address is None:
        yield SystemClock()
        return
    host, _, port = address.rpartition(":")
    async with SteppedClock.connected(name, host, int(port)) as clock:
        yield clock
