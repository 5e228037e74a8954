"""Ingest over a pipe instead of a broker, in a process that is there to be killed."""

import asyncio
import threading
from pathlib import Path

from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.messages import Acknowledged
from wattmesh_cloud.ingest import Ingest, IngestLimits
from wattmesh_cloud.lake import Lake
from wattmesh_cloud.store.base import Retention
from wattmesh_cloud.store.dead import DeadLetters
from wattmesh_cloud.store.sqlite import SqliteStore

RETENTION = Retention(frames_s=6 * 3600, lateness_s=0)


class PipeMessenger:
    def __init__(self, pipe):
        self._pipe = pipe

    def on_telemetry(self, handler, *, group=None):
        self.take = handler

    async def request(self, to, message, *, expires_ns, timeout_s=None, as_agent=None):
        self._pipe.send((to.unit, message.stream, message.sequences))
        return Acknowledged()


def work(pipe, folder: str, now_ns: int, keeps_house: bool = True) -> None:
    """Take frames from the pipe, answer with acknowledgements, roll up and forget all the while, until killed.

    The lake has one writer, and roll-ups belong to it: of several workers none keeps house.
    """
    asyncio.run(_work(pipe, Path(folder), now_ns, keeps_house))


async def _work(pipe, folder: Path, now_ns: int, keeps_house: bool) -> None:
    store, lake = SqliteStore(folder / "store.sqlite", RETENTION), Lake(folder / "lake")
    dead = DeadLetters(folder / "dead.sqlite")
    messenger = PipeMessenger(pipe)
    limits = IngestLimits(linger_s=0.0, ack_every_s=0.0, group_bytes=20_000, ahead_s=10**9)
    ingest = Ingest(store, messenger, ManualClock(now_ns), "test", dead=dead, limits=limits)
    ingest.register()
    loop = asyncio.get_running_loop()

    def listen():
        while True:
            try:
                site, stream, frame = pipe.recv()
            except EOFError:
                return
            loop.call_soon_threadsafe(messenger.take, site, stream, frame)

    threading.Thread(target=listen, daemon=True).start()

    async def maintain():
        while keeps_house:
            await asyncio.to_thread(lake.catch_up, store, now_ns)
            await asyncio.to_thread(store.maintain, now_ns)
            await asyncio.sleep(0.002)

    await asyncio.gather(ingest.run(), maintain())


def hours_later(start_ns: int, hours: int) -> int:
    return start_ns + hours * 3600 * NS_PER_S
