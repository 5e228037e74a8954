"""``wattmesh cloud``, ``wattmesh settle``, ``wattmesh market``."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wattmesh_cloud.market.standby import Following

GC_THRESHOLD = (50_000, 20, 50)
"""Orders and trades stay for days: looking through them for garbage every 700 objects costs a tenth of the market's pace."""

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Of glibc's mallopt(3)."""
_LARGE_BYTES = 1 << 20


def give_back_memory() -> bool:
    """Have large arrays go back to the system when they are freed; whether the C library has a way for that.

    Fitting a forecast takes hundreds of megabytes for a second. glibc would keep them, for each thread that ever did it: with four
    homes of a year's history the process stood at 1.1 GB after 40 s, with this between 0.25 and 0.7 GB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)) and bool(mallopt(_M_ARENA_MAX, 2))


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
        areas = (config.model.market, *config.model.areas)
        print(f"{arguments.file}: fine: {sum(len(one.participants) for one in areas)} participants")
        return 0
    gc.set_threshold(*GC_THRESHOLD)
    give_back_memory()
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


async def _work(file: Path, number: int) -> None:
    from wattmesh_a2a.clock import SystemClock

    from wattmesh_cloud.config import load_cloud
    from wattmesh_cloud.worker import run

    stop = asyncio.Event()
    for one in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(one, stop.set)
    await run(load_cloud(file), SystemClock(), number, stop)


def settle(argv: list[str]) -> int:
    """``wattmesh settle verify|statement``."""
    parser = argparse.ArgumentParser(prog="wattmesh settle")
    actions = parser.add_subparsers(dest="action", required=True)
    verify = actions.add_parser("verify", help="check a statement, or a whole market, from raw data")
    verify.add_argument("file", type=Path, help="a statement's CSV, or a market's journal")
    verify.add_argument("--readings", type=Path, help="your own meter: CSV of slot_start_ns, import_wh, export_wh")
    verify.add_argument("--journal", type=Path, help="the market's journal: the statement's raw rows are checked, too")
    write = actions.add_parser("statement", help="write a participant's statement from a journal")
    write.add_argument("journal", type=Path)
    write.add_argument("participant")
    write.add_argument("--from-ns", type=int, default=0, help="first delivery, UTC nanoseconds")
    write.add_argument("--to-ns", type=int, default=2**62, help="deliveries before this")
    write.add_argument("--csv", type=Path, help="the file to check; printed when left out")
    write.add_argument("--html", type=Path, help="a page for people")
    arguments = parser.parse_args(argv)
    return _statement(arguments) if arguments.action == "statement" else _verify(arguments)


def _statement(arguments: argparse.Namespace) -> int:
    from wattmesh_cloud.market.statement import replayed, statement_rows, to_csv, to_html

    engine = replayed(arguments.journal).engine
    rows = statement_rows(engine, arguments.participant, arguments.from_ns, arguments.to_ns)
    if arguments.csv:
        arguments.csv.write_text(to_csv(rows), encoding="utf-8")
    if arguments.html:
        title = f"Statement of {arguments.participant}, market area {engine.config.area}"
        arguments.html.write_text(to_html(rows, title=title, currency=engine.config.currency), encoding="utf-8")
    if not arguments.csv and not arguments.html:
        print(to_csv(rows), end="")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from wattmesh_cloud.market.statement import audit, check, read_csv, read_readings, replayed, statement_rows

    if arguments.file.suffix == ".journal":
        replica = replayed(arguments.file)
        wrong = audit(replica.engine)
        ledger = replica.engine.ledger
        print(
            f"{replica.count} entries, {ledger.count} bookings, ledger sums to {ledger.total()}, digest {ledger.digest}"
        )
        print(f"state {replica.state_hash()}")
    else:
        rows = read_csv(arguments.file)
        wrong = check(rows, read_readings(arguments.readings) if arguments.readings else None)
        if arguments.journal and rows:
            slots = [row["slot_start_ns"] for row in rows if "slot_start_ns" in row]
            engine = replayed(arguments.journal).engine
            if slots and rows != statement_rows(engine, rows[-1]["id"], min(slots), max(slots) + 1):
                wrong.append("the journal gives another statement")
    for text in wrong:
        print(text)
    print("wrong" if wrong else "right: every amount follows from the raw data")
    return 1 if wrong else 0


def market(argv: list[str]) -> int:
    """``wattmesh market lab|follow|promote``."""
    parser = argparse.ArgumentParser(prog="wattmesh market")
    actions = parser.add_subparsers(dest="action", required=True)
    lab = actions.add_parser("lab", help="compare mechanisms with simulated bidders over the market's own engine")
    lab.add_argument("--homes", type=int, default=40)
    lab.add_argument("--slots", type=int, default=96)
    lab.add_argument("--seed", type=int, default=1)
    lab.add_argument("--fleet", type=Path, help="a historical fleet: CSV of slot, participant, net_wh")
    lab.add_argument("--page", type=Path, help="write a page with plots")
    lab.add_argument("--json", action="store_true", help="one JSON object a line")
    follow = actions.add_parser("follow", help="a hot standby: know the markets' state, and go on as their writer")
    follow.add_argument("file", type=Path, help="the cloud's file; the state folder is the writer's")
    follow.add_argument("--take-over", action="store_true", help="run the cloud when its process is gone")
    follow.add_argument("--after", type=float, default=5.0, metavar="S", help="gone for so long (default 5 s)")
    follow.add_argument("--ready-file", type=Path, help="written when API and console answer after a take-over")
    follow.add_argument("--once", action="store_true", help="catch up, print the states with their hashes, and end")
    promote = actions.add_parser(
        "promote", help="fence a writer that hangs: nothing that it still does is acknowledged"
    )
    promote.add_argument("file", type=Path, help="the cloud's file")
    arguments = parser.parse_args(argv)
    if arguments.action == "lab":
        return _lab(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    from wattmesh_cloud.config import load_cloud
    from wattmesh_cloud.market.standby import Following

    following = Following(load_cloud(arguments.file))
    if arguments.action == "promote":
        following.promote()
        following.catch_up()
        print(following.told(hashed=True))
        print(
            "the writer before is fenced: end its process; a standby with --take-over, or `wattmesh cloud run`, goes on"
        )
        return 0
    if arguments.once:
        following.catch_up()
        print(following.told(hashed=True))
        return 0
    gc.set_threshold(*GC_THRESHOLD)
    after = arguments.after if arguments.take_over else None
    asyncio.run(_follow(arguments.file, following, after, arguments.ready_file))
    return 0


async def _follow(file: Path, following: Following, after_s: float | None, ready: Path | None) -> None:
    from wattmesh_a2a.clock import SystemClock

    from wattmesh_cloud.app import Cloud
    from wattmesh_cloud.config import load_cloud
    from wattmesh_cloud.market.standby import follow

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    clock = SystemClock()
    if await follow(following, clock, stop, lambda line: print(line, flush=True), take_over_after_s=after_s):
        print("the writer is gone: this process goes on", flush=True)
        await Cloud(load_cloud(file), clock, warm=following.standbys).run(stop, ready)


def _lab(arguments: argparse.Namespace) -> int:
    import json

    from wattmesh_cloud.market.lab import as_json, compare, from_file, generated, page

    seed = arguments.seed
    if arguments.fleet:
        fleet, title = from_file(arguments.fleet, seed), f"Mechanisms compared: {arguments.fleet.name}, seed {seed}"
    else:
        fleet = generated(arguments.homes, arguments.slots, seed)
        title = f"Mechanisms compared: {arguments.homes} homes, {arguments.slots} slots, seed {seed}"
    outcomes = compare(fleet, seed)
    for one in outcomes:
        if arguments.json:
            print(json.dumps(as_json(one)))
        else:
            price = "-" if one.mean_ticks is None else f"{one.mean_ticks / 100:.2f} ct/kWh"
            print(
                f"{one.mechanism:<16}{one.bidders:<10}{one.efficiency:>8.1%}{one.volume_wh / 1000:>10.1f} kWh  {price}"
            )
    if arguments.page:
        arguments.page.write_text(page(outcomes, title=title), encoding="utf-8")
        print(f"{arguments.page}: written")
    return 0


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
    """``wattmesh ingest dead|show|replay|forget CLOUD.yaml``: the dead letters; ``work``: one of several takers."""
    parser = argparse.ArgumentParser(prog="wattmesh ingest", description="What ingest could not take, and its workers.")
    parser.add_argument("action", choices=("dead", "show", "replay", "forget", "work"))
    parser.add_argument(
        "--number", type=int, default=1, help="work: which of the file's ingest.workers this process is"
    )
    parser.add_argument("file", type=Path, help="the cloud's file")
    parser.add_argument("--site", help="of this site only")
    parser.add_argument("--id", type=int, action="append", help="this letter (again for more)")
    parser.add_argument("--limit", type=int, default=50)
    arguments = parser.parse_args(argv)
    if arguments.action in {"show", "forget"} and not arguments.id:
        parser.error(f"{arguments.action} needs --id")
    from wattmesh_cloud.config import load_cloud
    from wattmesh_cloud.store.dead import DeadLetters

    if arguments.action == "work":
        gc.set_threshold(*GC_THRESHOLD)
        asyncio.run(_work(arguments.file, arguments.number))
        return 0
    letters = DeadLetters(load_cloud(arguments.file).state / "dead_frames.sqlite")
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


def access(argv: list[str]) -> int:
    """``wattmesh access CLOUD.yaml users|add-user|password|disable|enable|tokens|add-token|revoke-token``; the cloud may run."""
    parser = argparse.ArgumentParser(prog="wattmesh access", description="Who may use API and console.")
    parser.add_argument("file", type=Path, help="the cloud's file")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("users", help="list accounts")
    actions.add_parser("tokens", help="list machine tokens")
    for name, what in (
        ("add-user", "an account; its password is asked for"),
        ("add-token", "a machine token, shown once"),
    ):
        add = actions.add_parser(name, help=what)
        add.add_argument("name")
        add.add_argument("--role", default="viewer", choices=("viewer", "operator", "trader", "engineer", "admin"))
        add.add_argument("--tenant", default="fleet")
        if name == "add-token":
            add.add_argument("--days", type=int, default=365, help="how long it is valid")
        else:
            add.add_argument("--password-file", type=Path, help="instead of asking")
    for name in ("password", "disable", "enable", "revoke-token"):
        change = actions.add_parser(name)
        change.add_argument("name")
        if name == "password":
            change.add_argument("--password-file", type=Path, help="instead of asking")
    arguments = parser.parse_args(argv)
    from wattmesh_cloud.access.cli import run

    return run(arguments)
