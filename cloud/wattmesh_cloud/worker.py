"""One of several processes that take a cloud's telemetry together, over the same store.

The broker gives each batch to one of them (a shared subscription); what a killed one had not acknowledged comes again to another.
A batch is new once, whoever stores it, since its key is in the store that they share; its writers take turns. The cloud's own
process takes nothing then and hands on what they store (:meth:`wattmesh_cloud.ingest.Ingest.follow`).
"""

from __future__ import annotations

import asyncio
import logging

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import CLOUD_UNIT, INGEST_AGENT, Address
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.transports.mqtt import MqttTransport

from wattmesh_cloud.config import CloudConfig
from wattmesh_cloud.ingest import Ingest
from wattmesh_cloud.keys import cloud_keys
from wattmesh_cloud.store.dead import DeadLetters
from wattmesh_cloud.store.sqlite import SqliteStore

log = logging.getLogger(__name__)

GROUP = "ingest"


async def run(config: CloudConfig, clock: Clock, number: int, stop: asyncio.Event) -> None:
    """Take telemetry until ``stop`` is set; raises :class:`ConfigurationError` for a number that the file does not have."""
    model = config.model
    if not 1 <= number <= model.ingest.workers:
        raise ConfigurationError(f"worker {number}: the cloud's file has ingest.workers: {model.ingest.workers}")
    config.state.mkdir(parents=True, exist_ok=True)
    address = Address(model.org, CLOUD_UNIT, f"{INGEST_AGENT}-{number}")
    transport = MqttTransport(model.broker, str(address), ca=model.ca, certificate=model.certificate, key=model.key)
    messenger = Delivery(transport, address, clock, keys=cloud_keys(config))
    store, dead = SqliteStore(config.state / "store.sqlite"), DeadLetters(config.state / "dead_frames.sqlite")
    ingest = Ingest(store, messenger, clock, model.org, dead=dead, group=GROUP)
    ingest.register()
    await messenger.start()
    log.info("worker %d takes telemetry", number)
    taking = asyncio.create_task(ingest.run())
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({taking, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if taking.done():
            taking.result()  # it never returns: this raises what ended it
        await ingest.settle(10.0)
    finally:
        for task in (taking, waiting):
            task.cancel()
        await asyncio.gather(taking, waiting, return_exceptions=True)
        await ingest.stop()
        await messenger.stop()
        dead.close()
        store.close()
