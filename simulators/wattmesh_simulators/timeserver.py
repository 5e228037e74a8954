"""Hands out simulated time in steps: as fast as the slowest process, and no faster than asked.

Protocol: see :class:`wattmesh_a2a.clock.SteppedClock`. A step goes to the hardware first and then to everybody else, so that
what is read in a step has been simulated up to it. A client that dies is no longer waited for and may join again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from wattmesh_a2a.errors import UnavailableError

log = logging.getLogger(__name__)

NS_PER_S = 1_000_000_000
FIRST = "hardware"
"""The client that gets each step before the others."""


@dataclass(slots=True, eq=False)
class _Client:
    name: str
    writer: asyncio.StreamWriter
    done_ns: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    slow: bool = False


class TimeServer:
    """Simulated time for a fleet of processes on this machine.

    Args:
        start_ns: UTC at which time begins.
        step_ns: Length of a step.
        speed: Simulated seconds a real second at most; none for no limit.
        expected: Names of clients; others may join too.
        patience_s: Real time after which a client that does not answer is waited for no longer, until it answers.
    """

    def __init__(
        self,
        *,
        start_ns: int,
        step_ns: int,
        speed: float | None,
        expected: Collection[str] = (),
        patience_s: float = 30.0,
    ) -> None:
        self.now_ns = start_ns
        self.port = 0
        self._step_ns = step_ns
        self._speed = speed
        self._expected = set(expected)
        self._patience_s = patience_s
        self._clients: dict[str, _Client] = {}
        self._joined = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def serve(self, port: int = 0) -> None:
        """Listen on loopback; ``port`` then says where."""
        self._server = await asyncio.start_server(self._client, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end all connections."""
        for client in list(self._clients.values()):
            client.writer.close()
        if self._server is not None:
            self._server.close()

    async def wait_joined(self, names: Collection[str], timeout_s: float) -> None:
        """Return when all ``names`` take part; raises :class:`UnavailableError` with those who do not."""
        try:
            async with asyncio.timeout(timeout_s):
                while missing := set(names) - set(self._clients):
                    self._joined.clear()
                    await self._joined.wait()
        except TimeoutError:
            raise UnavailableError(f"{', '.join(sorted(missing))} did not join simulated time") from None

    async def run(self, until_ns: int | None, on_step: Callable[[int], None] | None = None) -> None:
        """Let time pass until ``until_ns``, or for ever.

        ``on_step`` is called with the time after each step that everybody has finished.
        """
        loop = asyncio.get_running_loop()
        pause = 0.0 if self._speed is None else self._step_ns / NS_PER_S / self._speed
        due = loop.time()
        while until_ns is None or self.now_ns < until_ns:
            due = max(due + pause, loop.time() - 5 * pause)
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            await self._hardware_is_there()
            self.now_ns += self._step_ns
            clients = list(self._clients.values())
            await self._step([client for client in clients if client.name == FIRST])
            await self._step([client for client in clients if client.name != FIRST])
            if on_step is not None:
                on_step(self.now_ns)

    async def _hardware_is_there(self) -> None:
        """Without hardware there is no plant: time stands still while it is restarted, for as long as patience goes."""
        if FIRST not in self._expected or FIRST in self._clients:
            return
        try:
            await self.wait_joined({FIRST}, self._patience_s)
        except UnavailableError:
            self._expected.discard(FIRST)
            log.warning("%s did not come back in %.0f s; going on without it", FIRST, self._patience_s)

    async def _step(self, clients: list[_Client]) -> None:
        line = b'{"now_ns": %d}\n' % self.now_ns
        for client in clients:
            if not client.slow:
                client.writer.write(line)
        deadline = asyncio.get_running_loop().time() + self._patience_s
        for client in clients:
            while not client.gone and not client.slow and client.done_ns < self.now_ns:
                client.changed.clear()
                try:
                    async with asyncio.timeout_at(deadline):
                        await client.changed.wait()
                except TimeoutError:
                    client.slow = True
                    log.warning(
                        "%s did not finish its step in %.0f s; going on without it", client.name, self._patience_s
                    )

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client: _Client | None = None
        try:
            name = str(json.loads(await reader.readline())["name"])
            client = _Client(name, writer, self.now_ns)
            previous = self._clients.get(name)
            if previous is not None:
                self._leave(previous)
                previous.writer.close()
            self._clients[name] = client
            writer.write(b'{"now_ns": %d}\n' % self.now_ns)
            self._joined.set()
            while line := await reader.readline():
                client.done_ns = int(json.loads(line)["done_ns"])
                if client.slow:
                    client.slow = False
                    log.warning("%s is back", name)
                client.changed.set()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("a client of simulated time left: %s", error)
        finally:
            if client is not None:
                self._leave(client)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def _leave(self, client: _Client) -> None:
        client.gone = True
        client.changed.set()
        if self._clients.get(client.name) is client:
            del self._clients[client.name]
