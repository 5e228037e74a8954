"""A gateway's agent on MQTT alone, and the HTTP bridge in front of it, as processes of their own: for the A2A suite and benchmarks.

usage: a2a_fixture.py agent BROKER | bridge BROKER PORT STATE [PUSH-ORIGIN …]

The agent answers as the suite's scenarios say (their message ids begin with what it has to do). The bridge lets everybody in as a
reader: the suite cannot say who it is.
"""

import asyncio
import sys
from pathlib import Path

import uvicorn
from wattmesh_a2a.a2a_profile import COMPLETED, INPUT_REQUIRED, REJECTED, WORKING
from wattmesh_a2a.cards import AgentRegistry
from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.transports.mqtt import MqttTransport

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "ingest")


def status(state, text=""):
    found = {"state": state}
    if text:
        found["message"] = {"role": "ROLE_AGENT", "parts": [{"text": text}]}
    return {"statusUpdate": {"status": found}}


def artifact(part, **more):
    return {"artifactUpdate": {"artifact": {"artifactId": "a-1", "parts": [part]}, **more}}


FILE = {"raw": "SGVsbG8=", "filename": "output.txt", "mediaType": "text/plain"}
URL = {"url": "https://example.com/output.txt", "filename": "output.txt", "mediaType": "text/plain"}
SCENARIOS = {
    "tck-artifact-file-url": [artifact(URL), status(COMPLETED)],
    "tck-artifact-file": [artifact(FILE), status(COMPLETED)],
    "tck-artifact-text": [artifact({"text": "Generated text content"}), status(COMPLETED)],
    "tck-artifact-data": [artifact({"data": {"key": "value", "count": 42}}), status(COMPLETED)],
    "tck-message-response": [{"message": {"parts": [{"text": "Direct message response"}]}}],
    "tck-input-required": [status(INPUT_REQUIRED)],
    "tck-reject-task": [status(REJECTED, "rejected")],
    "tck-stream-001": [status(WORKING), artifact({"text": "Stream hello from TCK"}), status(COMPLETED)],
    "tck-stream-002": [status(COMPLETED)],
    "tck-stream-003": [status(WORKING), artifact({"text": "Stream task lifecycle"}), status(COMPLETED)],
    "tck-stream-ordering-001": [status(WORKING), artifact({"text": "Ordered output"}), status(COMPLETED)],
    "tck-stream-artifact-text": [status(WORKING), artifact({"text": "Streamed text content"}), status(COMPLETED)],
    "tck-stream-artifact-file": [status(WORKING), artifact(FILE), status(COMPLETED)],
    "tck-stream-artifact-chunked": [
        status(WORKING),
        artifact({"text": "chunk-1 "}, append=False, lastChunk=False),
        artifact({"text": "chunk-2"}, append=True, lastChunk=True),
        status(COMPLETED),
    ],
}
LONG_S = 4.0


async def scenarios(task):
    """Does what the message's id begins with; anything else is completed with a greeting."""
    name = str(task.message.get("messageId"))
    if name.startswith("test-resubscribe-message-id"):
        yield status(WORKING)
        await asyncio.sleep(LONG_S)
        yield status(COMPLETED)
        return
    for prefix, events in SCENARIOS.items():
        if name.startswith(prefix):
            for event in events:
                yield event
            return
    yield status(COMPLETED, "Hello from TCK")


async def agent(url):
    transport = MqttTransport(url, str(SITE))
    delivery = Delivery(transport, SITE, SystemClock())
    delivery.on_plain(scenarios)
    await delivery.announce({})
    await delivery.start()
    await transport.wait_connected(10)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await delivery.stop()


class Everybody:
    """An authenticator that takes anybody for a reader."""

    def caller(self, authorization, certificate):
        from wattmesh_cloud.tools.base import READER, Caller

        return Caller(id="anybody", roles=frozenset({READER}))


async def bridge(url, port, state, *origins):
    from wattmesh_cloud.a2a_http.server import A2aHttp, Wiring

    clock = SystemClock()
    transport = MqttTransport(url, str(CLOUD))
    delivery = Delivery(transport, CLOUD, clock)
    registry = AgentRegistry(delivery, clock)
    await delivery.start()
    await transport.wait_connected(10)
    while registry.get(SITE) is None:
        await asyncio.sleep(0.02)
    app = A2aHttp(
        Wiring(
            messenger=delivery, agents=registry.agents, agent=registry.get, clock=clock, authenticator=Everybody(),
            audit=lambda *_: None, org="o", url=f"http://127.0.0.1:{port}", state=Path(state), push_origins=origins,
            with_login=False,
        )
    )  # fmt: skip
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.should_exit = True
    await serving
    await app.aclose()
    await delivery.stop()


if __name__ == "__main__":
    asyncio.run({"agent": agent, "bridge": bridge}[sys.argv[1]](*sys.argv[2:]))
