"""An event loop whose time passes only when nobody has anything to do, and then at once."""

import asyncio
import contextlib
import selectors

NS = 1_000_000_000


class _NoWaiting(selectors.SelectSelector):
    """Never waits and looks at no socket: what the loop would wait for is added to its time."""

    passed = 0.0

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("everybody waits for something that never comes")
        if timeout > 0:
            self.passed += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """For simulated networks alone: it does no I/O."""

    def __init__(self):
        self._passing = _NoWaiting()
        super().__init__(self._passing)

    def time(self):
        return self._passing.passed


class LoopClock:
    """``wattmesh_a2a.clock.Clock`` on the loop's time."""

    def __init__(self, loop, utc_ns=1_700_000_000 * NS):
        self._loop, self._utc_ns, self._began = loop, utc_ns, loop.time()

    def utc_ns(self):
        return self._utc_ns + self.monotonic_ns()

    def monotonic_ns(self):
        return round((self._loop.time() - self._began) * NS)

    def runner(self):
        return contextlib.nullcontext()

    async def sleep_until_ns(self, monotonic_ns):
        await asyncio.sleep(max(0, monotonic_ns - self.monotonic_ns()) / NS)
