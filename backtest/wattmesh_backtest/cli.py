"""``wattmesh backtest``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from wattmesh_a2a.errors import ConfigurationError

if TYPE_CHECKING:
    from wattmesh_backtest.runner import Progress


def backtest(argv: list[str]) -> int:
    """``wattmesh backtest --data DATA --controller NAME``: plays a period and writes a page."""
    from wattmesh_backtest.controllers import CONTROLLERS

    parser = argparse.ArgumentParser(
        prog="wattmesh backtest",
        description="Play a period through planner, agents, market and settlement in virtual time; write a page that compares.",
        epilog="controllers: " + "; ".join(f"{one.name}: {one.title}" for one in CONTROLLERS.values()),
    )
    parser.add_argument("--data", default="citylearn_2022", help="citylearn_2022, or a folder (see docs/backtest.md)")
    parser.add_argument(
        "--controller", action="append", help="again for more; none and selfconsumption always come along"
    )
    parser.add_argument("--from", dest="start", help="first quarter hour, UTC: 2022-09-01 or 2022-09-01T07:00")
    parser.add_argument("--days", type=int, help="how many; all that there are when left out")
    parser.add_argument("--page", type=Path, default=Path("backtest.html"))
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--workers", type=int, default=2, help="processes that hold the sites")
    arguments = parser.parse_args(argv)
    if arguments.days is not None and arguments.days < 1:
        raise ConfigurationError("--days has to be at least 1")
    if not arguments.page.resolve().parent.is_dir():
        raise ConfigurationError(f"--page: there is no folder {arguments.page.resolve().parent}")
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    try:
        from wattmesh_backtest.bound import perfect
    except ImportError as error:
        raise ConfigurationError(
            "the bound of perfect foresight needs HiGHS: pip install wattmesh[optimise]"
        ) from error
    from wattmesh_backtest.controllers import controller_of
    from wattmesh_backtest.data import load_period
    from wattmesh_backtest.figures import figures
    from wattmesh_backtest.page import page
    from wattmesh_backtest.runner import play

    names = list(dict.fromkeys(["none", "selfconsumption", *(arguments.controller or ["market"])]))
    controllers = [controller_of(name) for name in names]
    period = load_period(arguments.data, _moment(arguments.start), arguments.days)
    results, rows = [], []
    for controller in controllers:
        result = play(period, controller, workers=arguments.workers, progress=_progress(controller.name))
        results.append(result)
        rows.append(figures(period, result, controller.title))
    bound = perfect(period)
    arguments.page.write_text(page(period, results, rows, bound), encoding="utf-8")
    if arguments.json:
        for row in rows:
            print(json.dumps(asdict(row)))
        print(json.dumps({"name": "perfect", "alone": sum(bound.alone.values()), "together": bound.together}))
        return 0
    base = {row.name: row.paid for row in rows}
    for row in rows:
        parts = [
            f"{-(base[name] - row.paid) / base[name]:+7.1%} against {name}"
            for name in names[:2]
            if base[name] > 0 and name != row.name
        ]
        print(f"{row.name:<16}{row.paid:>12,.2f} {period.currency}  {', '.join(parts)}".rstrip())
    alone = sum(bound.alone.values())
    print(
        f"{'perfect, alone':<16}{alone:>12,.2f} {period.currency}\n{'perfect, all':<16}{bound.together:>12,.2f} {period.currency}"
    )
    print(f"{arguments.page}: written")
    return 0


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"--from {text!r} is no date; write 2022-09-01 or 2022-09-01T07:00") from error
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    if (found.minute % 15, found.second, found.microsecond) != (0, 0, 0):
        raise ConfigurationError("--from has to be the start of a quarter hour")
    return found


def _progress(name: str) -> Progress | None:
    """A line on a terminal that goes away; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(index: int, slots: int) -> None:
        print(f"\r{name}: {index / slots:4.0%} ", end="", file=sys.stderr, flush=True)

    return show
