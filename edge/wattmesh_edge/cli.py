"""``wattmesh gateway`` and ``wattmesh why``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from wattmesh_a2a.errors import ConfigurationError

if TYPE_CHECKING:
    from wattmesh_edge.releases import Releases


def gateway(argv: list[str]) -> int:
    """``wattmesh gateway run|check|status|why|history SITE.yaml``."""
    if argv[:1] == ["why"]:
        return why(argv[1:])
    if argv[:1] == ["history"]:
        return history(argv[1:])
    parser = argparse.ArgumentParser(
        prog="wattmesh gateway",
        epilog="wattmesh gateway why --help and wattmesh gateway history --help tell of the past",
    )
    parser.add_argument("action", choices=("run", "check", "status"))
    parser.add_argument("file", type=Path, help="the site file")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="json: one object a line")
    parser.add_argument("--time-server", metavar="HOST:PORT", help="take part in simulated time")
    parser.add_argument("--ready-file", type=Path, help="written when the gateway works")
    parser.add_argument("--json", action="store_true", help="of status: everything, for a program")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args(argv)
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")
    from wattmesh_edge.config import load_site

    site = load_site(arguments.file)
    if arguments.log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines(site.model.site))
    if arguments.action == "check":
        print(f"{arguments.file}: {site.model.site} is fine: {len(site.model.devices)} devices")
        return 0
    if arguments.action == "status":
        from wattmesh_edge.status import last_report, live_state, status_lines

        if arguments.json:
            print(json.dumps({"now": live_state(site), "report": last_report(site)[1]}, indent=1))
        else:
            print("\n".join(status_lines(site)))
        return 0
    from wattmesh_edge.releases import Releases

    releases = Releases(site.state / "releases", arguments.file.resolve())
    while True:
        releases.enter(["gateway", *argv])
        if asyncio.run(_run(arguments.file, arguments.time_server, arguments.ready_file, releases)):
            return 0


class JsonLines(logging.Formatter):
    """Log records as JSON, one object a line: time (UTC), level, logger, site, text, and the traceback where there is one."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self._site = site

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        fields = {
            "time": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "site": self._site,
            "text": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


async def _run(file: Path, time_server: str | None, ready: Path | None, releases: Releases) -> bool:
    """Run until the end (true) or until another software is to go on (false)."""
    from wattmesh_a2a.clock import open_clock

    from wattmesh_edge.config import load_site
    from wattmesh_edge.gateway import run_gateway
    from wattmesh_edge.versions import Versions

    versions = Versions(file, load_site(file).state / "config")
    site = versions.load()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_clock(site.model.site, time_server) as clock:
        await run_gateway(site, clock, stop, ready, versions, releases)
    return stop.is_set()


def why(argv: list[str]) -> int:
    """``wattmesh why SITE.yaml TIME``: which proposal, bound or fault decided the power at that time."""
    parser = argparse.ArgumentParser(prog="wattmesh why")
    parser.add_argument("file", type=Path, help="the site file")
    parser.add_argument("time", nargs="?", help="ISO 8601; without an offset it is UTC; default: now")
    arguments = parser.parse_args(argv)
    from wattmesh_edge.config import load_site
    from wattmesh_edge.trace import why as explain

    site = load_site(arguments.file)
    try:
        moment = datetime.fromisoformat(arguments.time) if arguments.time else datetime.now(UTC)
    except ValueError as error:
        raise ConfigurationError(f"{arguments.time!r} is no time; write it like 2026-05-01T18:00:00") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    database = site.state / "gateway.sqlite"
    if not database.exists():
        raise ConfigurationError(f"{database} does not exist: the gateway has not run yet")
    lines = explain(database, min(int(moment.timestamp()) * 1_000_000_000, 2**63 - 1))
    print("\n".join(lines) or "nothing had been decided by then")
    return 0 if lines else 1


def history(argv: list[str]) -> int:
    """``wattmesh gateway history SITE.yaml``: what the site took, made and stored, hour by hour, from its own disk."""
    parser = argparse.ArgumentParser(prog="wattmesh gateway history")
    parser.add_argument("file", type=Path, help="the site file")
    parser.add_argument("--hours", type=float, default=24.0, help="how far back")
    parser.add_argument("--step", type=float, default=60.0, help="minutes a row")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args(argv)
    if not (0 < arguments.hours <= 24 * 30 and 1 <= arguments.step <= 1440):
        raise ConfigurationError("--hours goes up to 720 and --step from 1 to 1440")
    from wattmesh_edge.config import load_site
    from wattmesh_edge.history import MINUTE_NS, QUANTITIES, open_history, read_history

    database = load_site(arguments.file).state / "gateway.sqlite"
    if not database.exists():
        raise ConfigurationError(f"{database} does not exist: the gateway has not run yet")
    db = open_history(database)
    last = db.execute("SELECT MAX(time_ns) FROM minutes").fetchone()[0] or 0
    step = round(arguments.step) * MINUTE_NS
    rows = read_history(db, last - round(arguments.hours * 3.6e12), last + 1, step)
    db.close()
    if not arguments.json:
        print("UTC               " + "".join(f"{name:>13}" for name in QUANTITIES))
    for row in rows:
        moment = datetime.fromtimestamp(row.time_ns / 1e9, tz=UTC).isoformat(timespec="minutes")
        values = {name: getattr(row, name) for name in QUANTITIES}
        if arguments.json:
            print(json.dumps({"time": moment, **values}))
        else:
            cells = "".join(f"{'-' if value is None else f'{value:.0f}':>13}" for value in values.values())
            print(f"{moment[:16]}  {cells}")
    return 0 if rows else 1


def event(argv: list[str]) -> int:
    """``wattmesh event list|plot|replay|scan|prequalify``: what the reflex did, would have done, and would do."""
    parser = argparse.ArgumentParser(prog="wattmesh event")
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="traces that a site keeps")
    listing.add_argument("file", type=Path, help="the site file")
    plot = actions.add_parser("plot", help="a trace as a page")
    plot.add_argument("trace", type=Path)
    plot.add_argument("--out", type=Path, help="default: beside the trace, .html")
    again = actions.add_parser("replay", help="the recorded inputs through the same logic, compared bit for bit")
    again.add_argument("trace", type=Path)
    scan = actions.add_parser(
        "scan", help="events in a recording: a waveform (WAV, CSV) or a table of frequencies (CSV)"
    )
    scan.add_argument("recording", type=Path)
    scan.add_argument("--nominal-hz", type=float, choices=(50, 60), default=50)
    scan.add_argument("--nominal-v", type=float, default=0.0, help="phase to neutral; default: not known")
    scan.add_argument("--rate-hz", type=float, help="samples a second of a waveform in a CSV")
    scan.add_argument("--columns", help="columns of a waveform, one a phase, with commas; default: the last one")
    scan.add_argument("--rail", type=float, default=0.0, help="largest value the recorder can give")
    scan.add_argument("--frequency", help="column of a table's frequency (Hz)")
    scan.add_argument("--time", default="time_utc", help="column of a table's time (s or ISO 8601)")
    scan.add_argument("--voltage", help="column of a table's voltage (V)")
    scan.add_argument("--profile", help="a response profile: what it would have done")
    scan.add_argument("--power-w", type=float, default=5000.0)
    test = actions.add_parser("prequalify", help="ramp, step and saw-tooth tests of a response profile, as a page")
    test.add_argument("profile", help="its name, or a file of one's own (.yaml)")
    test.add_argument("--nominal-hz", type=float, choices=(50, 60))
    test.add_argument("--power-w", type=float, default=5000.0)
    test.add_argument(
        "--battery-lag-ms", type=float, default=100.0, help="time constant of the battery inverter; measure it on yours"
    )
    test.add_argument("--out", type=Path, help="default: prequalification-PROFILE.html")
    arguments = parser.parse_args(argv)
    handlers = {
        "list": _list_events, "plot": _plot_event, "replay": _replay_event, "scan": _scan, "prequalify": _prequalify,
    }  # fmt: skip
    return handlers[arguments.action](arguments)


def _list_events(arguments: argparse.Namespace) -> int:
    from wattmesh_edge.config import load_site
    from wattmesh_edge.reflex import KINDS
    from wattmesh_edge.reflex.evidence import load_trace

    folder = load_site(arguments.file).state / "events"
    for path in sorted(folder.glob("*.trace.gz")):
        trace = load_trace(path)
        moment = datetime.fromtimestamp(trace.utc_ns / 1e9, tz=UTC).isoformat(timespec="milliseconds")
        print(f"{moment}  {KINDS[trace.event['kind']]:16} {path}")
    return 0


def _plot_event(arguments: argparse.Namespace) -> int:
    from wattmesh_edge.reflex import CAUSES, KINDS
    from wattmesh_edge.reflex.evidence import load_trace, replay
    from wattmesh_edge.reflex.plot import trace_page

    trace = load_trace(arguments.trace)
    try:
        replayed = replay(trace)
    except ConfigurationError as error:
        text = trace_page(trace, str(error), CAUSES, [str(kind) for kind in KINDS])
    else:
        text = trace_page(trace, replayed, CAUSES, [str(kind) for kind in KINDS])
    out = arguments.out or arguments.trace.with_name(arguments.trace.name.removesuffix(".trace.gz") + ".html")
    out.write_text(text, encoding="utf-8")
    print(out)
    return 0


def _replay_event(arguments: argparse.Namespace) -> int:
    from wattmesh_edge.reflex.evidence import load_trace, replay

    found = replay(load_trace(arguments.trace))
    if found.identical:
        print(f"{found.inputs} inputs give the same {found.outputs} estimates and decisions, bit for bit")
        return 0
    print(f"not the same: {found.first_difference}")
    return 1


def _scan(arguments: argparse.Namespace) -> int:
    from wattmesh_edge.reflex import load_profile
    from wattmesh_edge.reflex.scan import read_table, scan_register, scan_waveform
    from wattmesh_edge.reflex.sources import read_waveform

    profile = load_profile(arguments.profile) if arguments.profile else None
    if profile is not None and arguments.nominal_hz not in profile.nominal_hz:
        raise ConfigurationError(f"profile {profile.id} is not for {arguments.nominal_hz:g} Hz")
    shared = {"nominal_hz": arguments.nominal_hz, "nominal_v": arguments.nominal_v, "profile": profile}
    if arguments.frequency:
        rows = read_table(
            arguments.recording, time=arguments.time, frequency=arguments.frequency, voltage=arguments.voltage
        )
        found = scan_register(rows, power_w=arguments.power_w, **shared)
    else:
        columns = arguments.columns.split(",") if arguments.columns else ()
        samples, phases, rate = read_waveform(arguments.recording, rate_hz=arguments.rate_hz, columns=columns)
        found = scan_waveform(
            samples, rate_hz=rate, phases=phases, rail_v=arguments.rail, power_w=arguments.power_w, **shared
        )
    for one in found.events:
        hertz = "-" if one["extreme_hz"] is None else f"{one['extreme_hz']:.4f} Hz"
        lasted = (one["end_ns"] - one["start_ns"]) / 1e9
        print(f"{one['start_s']:12.3f} s  {one['name']:16} {lasted:10.3f} s  {hertz}")
    for began, ended, cause in found.spans:
        print(f"{began:12.3f} s  not valid        {ended - began:10.3f} s  {cause}")
    if profile is not None:
        for at, watt in found.setpoints[:20]:
            print(f"{at:12.3f} s  setpoint         {watt:10.0f} W")
        print(f"{len(found.setpoints)} setpoints")
    print(f"{found.seconds:.1f} s, {len(found.events)} events; estimates: {dict(found.causes)}")
    return 0


def _prequalify(arguments: argparse.Namespace) -> int:
    from wattmesh_edge.reflex import load_profile
    from wattmesh_edge.reflex.prequalify import Bench, prequalify, report_page

    profile = load_profile(arguments.profile)
    nominal_hz = arguments.nominal_hz or profile.nominal_hz[0]
    if nominal_hz not in profile.nominal_hz:
        raise ConfigurationError(f"profile {profile.id} is not for {nominal_hz:g} Hz")
    if not profile.moves:
        raise ConfigurationError(f"profile {profile.id} moves nothing: there is nothing to test")
    if not (0 < arguments.battery_lag_ms <= 60_000 and 0 < arguments.power_w < math.inf):
        raise ConfigurationError("--power-w and --battery-lag-ms are positive; a lag is at most a minute")
    bench = Bench(nominal_hz=nominal_hz, power_w=arguments.power_w, battery_lag_s=arguments.battery_lag_ms / 1000)
    courses = prequalify(profile, bench)
    out = arguments.out or Path(f"prequalification-{profile.id}.html")
    out.write_text(report_page(profile, bench, courses), encoding="utf-8")
    failed = [(course.name, check) for course in courses for check in course.checks if not check[3]]
    for name, (what, value, wanted, _) in failed:
        print(f"FAILED {name}: {what} {value}, wanted {wanted}")
    total = sum(len(course.checks) for course in courses)
    print(f"{out}: {total - len(failed)} of {total} checks passed")
    return 1 if failed else 0
