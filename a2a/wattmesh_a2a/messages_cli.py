"""``wattmesh messages tap|stats|dead|replay|schemas``."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from pathlib import Path

from wattmesh_a2a import codec
from wattmesh_a2a.clock import NS_PER_S, SystemClock
from wattmesh_a2a.deadletters import DeadLetter, DeadLetters
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import OPERATOR_UNIT, STATS_AGENT, Address
from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, WattmeshError
from wattmesh_a2a.messages import StatsQuery, StatsReport
from wattmesh_a2a.signing import KeyRing, Signer
from wattmesh_a2a.topics import Topics
from wattmesh_a2a.transports.base import Inbound
from wattmesh_a2a.transports.mqtt import MqttTransport


def main(argv: list[str]) -> int:
    """Run the command; mistakes of the user are raised as :class:`WattmeshError`."""
    options = _parser().parse_args(argv)
    match options.action:
        case "tap":
            asyncio.run(_tap(options))
        case "stats":
            return asyncio.run(_stats(options))
        case "dead":
            _list(_open(options.file))
        case "replay":
            return asyncio.run(_replay(options))
        case "schemas":
            from wattmesh_a2a import vocabulary

            vocabulary.write(options.folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wattmesh messages")
    actions = parser.add_subparsers(dest="action", required=True)
    tap = actions.add_parser("tap", help="a line for each message that passes the broker")
    tap.add_argument("filter", nargs="?", default="#")
    stats = actions.add_parser("stats", help="an agent's figures since its start, by event, type and peer")
    stats.add_argument("agent", help="ORG/UNIT, a site or the cloud; or ORG/UNIT/AGENT")
    stats.add_argument("--json", action="store_true")
    stats.add_argument(
        "--as-unit", default=OPERATOR_UNIT, help="unit of the address we ask from: the certificate's name"
    )
    dead = actions.add_parser("dead", help="what could not be understood or delivered, the newest first")
    dead.add_argument("file", type=Path, help="dead.sqlite in the state folder of a gateway or the cloud")
    replay = actions.add_parser("replay", help="send a dead letter again")
    replay.add_argument("file", type=Path)
    replay.add_argument("number", type=int)
    replay.add_argument("--valid-s", type=float, default=60.0, help="a request of ours gets this new validity")
    replay.add_argument("--signing-key", type=Path, help="SITE.key, for what has to be signed")
    for one in (tap, stats, replay):
        one.add_argument("--broker", default="mqtt://127.0.0.1:1883")
        one.add_argument("--ca", type=Path)
        one.add_argument("--certificate", type=Path)
        one.add_argument("--key", type=Path)
        one.add_argument("--prefix", default=Topics().prefix)
    schemas = actions.add_parser("schemas", help="write the vocabulary's schemas and examples")
    schemas.add_argument("folder", type=Path)
    return parser


def _transport(options: argparse.Namespace, client_id: str) -> MqttTransport:
    return MqttTransport(options.broker, client_id, ca=options.ca, certificate=options.certificate, key=options.key)


async def _tap(options: argparse.Namespace) -> None:
    def show(inbound: Inbound) -> None:
        kind, trace = "-", "-"
        try:
            fields = codec.decode_fields(inbound.payload)
            kind, trace = str(fields.get("type", "-")), str(fields.get("traceparent", "-"))[3:35]
        except InvalidMessageError:
            pass
        moment = time.strftime("%H:%M:%S", time.gmtime())
        print(
            f"{moment}  {printable(inbound.topic)}  {printable(kind)}  {len(inbound.payload)} bytes  {trace}",
            flush=True,
        )

    transport = _transport(options, f"tap-{uuid.uuid4().hex[:8]}")
    await transport.subscribe(options.filter, show)
    await transport.start()
    await transport.wait_connected(10.0)
    await asyncio.Event().wait()


async def _stats(options: argparse.Namespace) -> int:
    agent = Address.parse(options.agent if options.agent.count("/") > 1 else f"{options.agent}/{STATS_AGENT}")
    own = Address(agent.org, options.as_unit, f"stats-{uuid.uuid4().hex[:8]}")
    transport = _transport(options, str(own))
    clock = SystemClock()
    asking = Delivery(transport, own, clock, topics=Topics(prefix=options.prefix))
    await asking.start()
    try:
        await transport.wait_connected(10.0)
        report = await asking.request(agent, StatsQuery(), expires_ns=clock.utc_ns() + 20 * NS_PER_S, timeout_s=10.0)
    finally:
        await asking.stop()
    if not isinstance(report, StatsReport):
        raise ConfigurationError(f"{agent} does not tell its figures: {report}")
    for row in report.rows:
        if options.json:
            print(json.dumps(codec.message_to_json(StatsReport(session=report.session, rows=(row,)))["rows"][0]))
        else:
            took = "" if row.p50_ms is None else f"  p50 {row.p50_ms:.2f} ms  p99 {row.p99_ms:.2f} ms"
            print(printable(f"{row.count:>9}  {row.event:<20}  {row.type:<36}  {row.peer}{took}"))
    return 0


def _open(path: Path) -> DeadLetters:
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: no such file; it is dead.sqlite in the state folder of a gateway or the cloud"
        )
    return DeadLetters(path)


def _list(letters: DeadLetters) -> None:
    for one in letters.all():
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one.time_ns / NS_PER_S))
        again = f"  sent again {one.replays} times" if one.replays else ""
        text = f"{one.number:>6}  {moment}  {one.direction:<3}  {one.type}  {one.peer}  {one.topic}  {one.cause}{again}"
        print(printable(text))


async def _replay(options: argparse.Namespace) -> int:
    letters = _open(options.file)
    letter = letters.get(options.number)
    if not letter.payload:
        raise ConfigurationError(f"dead letter {letter.number} was too large to be kept whole")
    if letter.direction == "out":
        answer = await _ask_again(letter, options)
        print(printable(f"answered: {answer}"))
    else:
        transport = _transport(options, f"replay-{uuid.uuid4().hex[:8]}")
        await transport.start()
        try:
            await transport.wait_connected(10.0)
            await transport.publish(
                letter.topic, letter.payload, response_topic=_response_topic(letter, options.prefix)
            )
        finally:
            await transport.stop()
        print(f"published again on {printable(letter.topic)}; its receiver checks it like any other")
    letters.replayed(letter.number)
    return 0


def _response_topic(letter: DeadLetter, prefix: str) -> str | None:
    """Where the answer to a dropped request goes: to its sender, who may still wait for it."""
    try:
        source = codec.attributes(codec.decode_fields(letter.payload))["source"]
    except InvalidMessageError:
        return None
    return Topics(prefix=prefix).reply(source, "replay") if "/request/" in letter.topic else None


async def _ask_again(letter: DeadLetter, options: argparse.Namespace) -> object:
    """A request of ours, as a new one: its own id, its own validity, signed anew."""
    old = codec.from_fields(codec.decode_fields(letter.payload))
    if old.destination is None:
        raise WattmeshError(f"dead letter {letter.number} has no destination")
    keys: Signer | None = None
    if options.signing_key is not None:
        site = options.signing_key.stem
        keys = KeyRing.of_site(site, options.signing_key)
    own = Address(old.source.org, old.source.unit, f"replay-{uuid.uuid4().hex[:8]}")
    transport, clock = _transport(options, str(own)), SystemClock()
    asking = Delivery(transport, own, clock, topics=Topics(prefix=options.prefix), keys=keys)
    await asking.start()
    try:
        await transport.wait_connected(10.0)
        valid_ns = round(options.valid_s * NS_PER_S)
        return await asking.request(
            old.destination,
            old.data,
            expires_ns=clock.utc_ns() + valid_ns,
            timeout_s=options.valid_s,
            as_agent=old.source,
        )
    finally:
        await asking.stop()


def printable(text: str) -> str:
    """Text of others without control characters: a terminal must not obey a message."""
    return "".join(one if one.isprintable() else "�" for one in text)
