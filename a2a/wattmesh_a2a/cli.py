"""The command ``wattmesh``: finds a component's sub-command by entry point and imports only that component."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

from wattmesh_a2a.errors import WattmeshError


def main() -> int:
    """Run ``wattmesh SUB-COMMAND …``; a mistake of the user is one line on standard error and exit code 2."""
    commands = {entry.name: entry for entry in entry_points(group="wattmesh.commands")}
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in {"-h", "--help"}:
        print("usage: wattmesh COMMAND …\n\ncommands: " + ", ".join(sorted(commands)))
        return 0 if arguments else 2
    entry = commands.get(arguments[0])
    if entry is None:
        print(
            f"wattmesh: there is no command {arguments[0]!r}; there are: {', '.join(sorted(commands))}", file=sys.stderr
        )
        return 2
    try:
        return int(entry.load()(arguments[1:]))
    except WattmeshError as error:
        print(f"wattmesh {arguments[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def broker(argv: list[str]) -> int:
    """``wattmesh broker``: a broker for loopback, until ended."""
    import argparse
    import asyncio
    import signal
    from pathlib import Path

    from wattmesh_a2a.broker import provision_broker

    parser = argparse.ArgumentParser(prog="wattmesh broker")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--kind", choices=("any", "mosquitto", "small"), default="any")
    parser.add_argument("--state", type=Path, default=Path(".wattmesh/broker"))
    arguments = parser.parse_args(argv)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with provision_broker(arguments.state, arguments.port, kind=arguments.kind) as process:
            print(f"{process.description}: {process.url}", flush=True)
            await stop.wait()

    asyncio.run(run())
    return 0


def messages(argv: list[str]) -> int:
    """``wattmesh messages``: what passes a broker, figures, dead letters, the vocabulary's documents."""
    from wattmesh_a2a.messages_cli import main as run

    return run(argv)


def pki(argv: list[str]) -> int:
    """``wattmesh pki``: a private certificate authority for brokers, sites and the cloud."""
    from wattmesh_a2a.pki_cli import main as run

    return run(argv)
