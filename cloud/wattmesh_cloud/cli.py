"""``wattmesh cloud``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path


def cloud(argv: list[str]) -> int:
    """``wattmesh cloud run|check CLOUD.yaml``."""
    parser = argparse.ArgumentParser(prog="wattmesh cloud")
    parser.add_argument("action", choices=("run", "check"))
    parser.add_argument("file", type=Path, help="the cloud's file")
    parser.add_argument("--time-server", metavar="HOST:PORT", help="take part in simulated time")
    parser.add_argument("--ready-file", type=Path, help="written when API and console answer")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args(argv)
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")
    from wattmesh_cloud.config import load_cloud

    config = load_cloud(arguments.file)
    if arguments.action == "check":
        print(f"{arguments.file}: fine: {len(config.model.market.participants)} participants")
        return 0
    asyncio.run(_run(arguments.file, arguments.time_server, arguments.ready_file))
    return 0


async def _run(file: Path, time_server: str | None, ready: Path | None) -> None:
    from wattmesh_a2a.clock import open_clock

    from wattmesh_cloud.app import Cloud
    from wattmesh_cloud.config import load_cloud

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_clock("cloud", time_server) as clock:
        await Cloud(load_cloud(file), clock).run(stop, ready)


def backup(argv: list[str]) -> int:
    """``wattmesh backup CLOUD.yaml FOLDER``; the cloud may run."""
    parser = argparse.ArgumentParser(prog="wattmesh backup", description="Copy a cloud's state, also while it runs.")
    parser.add_argument("file", type=Path, help="the cloud's file")
    parser.add_argument("target", type=Path, help="a folder that is not there yet")
    arguments = parser.parse_args(argv)
    from wattmesh_a2a.clock import SystemClock

    from wattmesh_cloud import backup as work
    from wattmesh_cloud.config import load_cloud

    state = load_cloud(arguments.file).state
    done = work.backup(state, arguments.target, configuration=arguments.file, now_ns=SystemClock().utc_ns())
    print(f"{arguments.target}: {done.files} files, {done.bytes / 1e6:.1f} MB; keys and certificates are not in it")
    return 0


def restore(argv: list[str]) -> int:
    """``wattmesh restore FOLDER CLOUD.yaml``, or ``--check`` alone; into an empty state folder."""
    parser = argparse.ArgumentParser(prog="wattmesh restore", description="Bring a backup back, or check it.")
    parser.add_argument("source", type=Path, help="the backup")
    parser.add_argument("file", type=Path, nargs="?", help="the cloud's file (the backup holds a copy of it)")
    parser.add_argument("--check", action="store_true", help="only look whether the backup is whole")
    arguments = parser.parse_args(argv)
    if not arguments.check and arguments.file is None:
        parser.error("name the cloud's file, or use --check")
    from wattmesh_cloud import backup as work
    from wattmesh_cloud.config import load_cloud

    if arguments.check:
        done = work.verify(arguments.source)
        print(f"{arguments.source}: whole: {done.files} files, {done.bytes / 1e6:.1f} MB")
        return 0
    state = load_cloud(arguments.file).state
    done = work.restore(arguments.source, state)
    print(f"{state}: {done.files} files, {done.bytes / 1e6:.1f} MB")
    return 0


def ingest(argv: list[str]) -> int:
    """``wattmesh ingest dead|show|replay|forget CLOUD.yaml``: the dead letters."""
    parser = argparse.ArgumentParser(prog="wattmesh ingest", description="What ingest could not take.")
    parser.add_argument("action", choices=("dead", "show", "replay", "forget"))
    parser.add_argument("file", type=Path, help="the cloud's file")
    parser.add_argument("--site", help="of this site only")
    parser.add_argument("--id", type=int, action="append", help="this letter (again for more)")
    parser.add_argument("--limit", type=int, default=50)
    arguments = parser.parse_args(argv)
    if arguments.action in {"show", "forget"} and not arguments.id:
        parser.error(f"{arguments.action} needs --id")
    from wattmesh_cloud.config import load_cloud
    from wattmesh_cloud.store.dead import DeadLetters

    letters = DeadLetters(load_cloud(arguments.file).state / "dead.sqlite")
    try:
        if arguments.action == "replay":
            count = letters.mark(arguments.id, site=arguments.site)
            print(f"{count} letters will be tried again by the running cloud within 5 min of its time")
        elif arguments.action == "forget":
            letters.forget(arguments.id)
        else:
            for one in letters.letters(site=arguments.site, limit=arguments.limit):
                if arguments.action == "dead":
                    what = f"{one.stream} {one.sequence if one.sequence is not None else '?'}"
                    print(
                        f"{one.id}\t{one.site!r}\t{one.kind}\t{what!r}\t{one.times}x\t{len(one.payload)} B\t{one.reason!r}"
                    )
                elif one.id in arguments.id:
                    print(one.payload.hex())
    finally:
        letters.close()
    return 0


def tools(argv: list[str]) -> int:
    """``wattmesh tools list``, or ``wattmesh tools stdio CLOUD.yaml`` for a model on this machine."""
    parser = argparse.ArgumentParser(prog="wattmesh tools", description="The five tool services.")
    parser.add_argument("action", choices=("list", "stdio"))
    parser.add_argument("file", type=Path, nargs="?", help="the cloud's file; its cloud may run")
    arguments = parser.parse_args(argv)
    if arguments.action == "list":
        from wattmesh_cloud.tools.catalogue import CATALOGUE

        for one in CATALOGUE:
            print(f"{one.service}\t{one.name}\t{'/'.join(sorted(one.roles))}\t{one.description.splitlines()[0]}")
        return 0
    if arguments.file is None:
        parser.error("stdio needs the cloud's file")
    from wattmesh_a2a.clock import SystemClock

    from wattmesh_cloud.audit import AuditLog
    from wattmesh_cloud.config import load_cloud
    from wattmesh_cloud.store.sqlite import SqliteStore
    from wattmesh_cloud.tools.base import READER, Caller, Context
    from wattmesh_cloud.tools.mcp_server import build_server

    config = load_cloud(arguments.file)
    store, audit = SqliteStore(config.state / "store.sqlite"), AuditLog(config.state / "audit-stdio.log")
    context = Context(store=store, clock=SystemClock(), area=config.model.market.area, audit=audit)
    caller = Caller(id="stdio", roles=frozenset({READER}))
    build_server(context, lambda: caller).run("stdio")
    return 0


def audit(argv: list[str]) -> int:
    """``wattmesh audit LOG``: whether nothing was changed; with the anchor of a report, that nothing is missing at the end."""
    parser = argparse.ArgumentParser(prog="wattmesh audit", description="Check an audit log.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--key", type=Path, help="file with the key of the hashes")
    parser.add_argument(
        "--anchor", metavar="ENTRIES:HASH", help="as noted elsewhere, for example in the cloud's report"
    )
    arguments = parser.parse_args(argv)
    from wattmesh_cloud.audit import verify

    anchor: dict[str, int | str] | None = None
    if arguments.anchor:
        entries, _, digest = arguments.anchor.partition(":")
        if not entries.isdecimal() or not digest:
            parser.error("--anchor takes ENTRIES:HASH")
        anchor = {"entries": int(entries), "hash": digest}
    key = arguments.key.read_bytes() if arguments.key else None
    verdict = verify(arguments.log.read_bytes(), key, anchor)
    print(f"{arguments.log}: {verdict.fault or 'whole'}; {verdict.entries}:{verdict.last_hash}")
    return 1 if verdict.fault else 0
