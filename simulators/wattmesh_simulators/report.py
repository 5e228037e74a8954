"""The demo's report: what the processes left in their state folders, held against the truth of the simulated hardware.

Costs are at the retail tariff. The baselines pay for their imports and are paid for their exports home by home; WattMesh's cost is
what the ledger says that the homes paid the retailer (what they pay each other cancels out). Energy that a battery holds more or
less at the end than at the start is valued at the cheapest tariff, for all cases alike.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from wattmesh_a2a.tariff import Tariff
from wattmesh_a2a.tariff_file import TariffModel

from wattmesh_simulators.demo_fleet import TARIFF, TIME_ZONE, FleetFiles
from wattmesh_simulators.processes import Usage
from wattmesh_simulators.report_page import render_page

NS = 1_000_000_000
CASES = ("no_battery", "self_consumption", "wattmesh")
_LOCAL = timezone(timedelta(hours=-7))
_METERING_TOLERANCE = 0.02
"""Between the ledger's retail cost and the truth's: metering in whole watt-hours, and the seconds before the first reading."""


def build_report(
    state: Path, files: FleetFiles, *, days: float, elapsed_s: float, usage: Mapping[str, Usage], step_s: int
) -> dict[str, Any]:
    """Gather and judge."""
    tariff = TariffModel.model_validate(dict(TARIFF)).tariff(TIME_ZONE)
    truth = json.loads((state / "state" / "hardware" / "truth.json").read_text())
    cloud = json.loads((state / "state" / "cloud" / "report.json").read_text())
    gateways = {name: json.loads((state / "state" / name / "report.json").read_text()) for name in files.sites}
    end_ns = files.start_ns + round(days * 86_400) * NS
    sites = {
        name: _site(name, gateways[name], cloud, truth["sites"][name], tariff, files.start_ns, end_ns)
        for name in files.sites
    }
    nets = {case: _fleet_net_wh(truth, case, files.start_ns, end_ns) for case in CASES}
    report: dict[str, Any] = {
        "made": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "data": "Load, PV and tariff: CityLearn Challenge 2022, five homes in Fontana, California.",
        "days": days,
        "start": _local(files.start_ns),
        "step_s": step_s,
        "elapsed_s": round(elapsed_s, 1),
        "currency": "USD",
        "fleet": _fleet(sites, nets, truth),
        "sites": sites,
        "market": _market(cloud, gateways),
        "records": {
            key: sum(site["records"][key] for site in sites.values())
            for key in ("measured", "stored", "lost", "dropped")
        },
        "commands": {
            key: sum(site["commands"][key] for site in sites.values())
            for key in ("sent", "applied", "failed", "expired")
        },
        "frequency": _frequency(gateways, truth),
        "demand_response": cloud["grid"]["demand_response"],
        "forecasting": cloud["forecasting"],
        "cycle_overrun_max_ms": max(site["cycle_overrun_max_ms"] for site in sites.values()),
        "cycle_max_ms": max(site["cycle_max_ms"] for site in sites.values()),
        "processes": {name: {**asdict(one), "cpu_percent": 100 * one.cpu_s / elapsed_s} for name, one in usage.items()},
        "series": _series(nets, files.start_ns),
        "notes": _notes(step_s),
    }
    report["checks"] = _checks(report)
    report["met"] = all(check["met"] for check in report["checks"])
    return report


def _local(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // NS, tz=_LOCAL).strftime("%Y-%m-%d %H:%M")


def _site(
    name: str,
    gateway: Mapping[str, Any],
    cloud: Mapping[str, Any],
    truth: Mapping[str, Any],
    tariff: Tariff,
    start_ns: int,
    end_ns: int,
) -> dict[str, Any]:
    records = gateway["records"]
    measured = sum(value for key, value in records.items() if key.startswith("measured."))
    dropped = sum(value for key, value in records.items() if key.startswith("dropped."))
    stored = sum(stream["records"] for stream in cloud["stored"].get(name, {}).values())
    ledger = cloud["market"]["participants"][name]
    worth = min(tariff.import_price_ticks(start_ns + hour * 3600 * NS) for hour in range(24)) / 1e4 / 1000
    held = truth["stored_wh"]
    totals = gateway["totals"]
    actual = _cost(truth, "actual", tariff, start_ns, end_ns)
    return {
        "energy": {"bought_kwh": ledger["imported_wh"] / 1000, "sold_kwh": ledger["exported_wh"] / 1000},
        "cost": {
            "wattmesh": ledger["paid_retail"] + ledger["paid_trades"] - (held["actual"] - held["initial"]) * worth,
            "wattmesh_at_retail_alone": actual - (held["actual"] - held["initial"]) * worth,
            "no_battery": _cost(truth, "no_battery", tariff, start_ns, end_ns),
            "self_consumption": _cost(truth, "self_consumption", tariff, start_ns, end_ns)
            - (held["self_consumption"] - held["initial"]) * worth,
            "paid_retail": ledger["paid_retail"],
            "paid_trades": ledger["paid_trades"],
            "received_flexibility": ledger["received_flexibility"],
        },
        "stored_wh": held,
        "trades": ledger["trades"],
        "slots_settled": ledger["slots_settled"],
        "slots_substituted": ledger["slots_substituted"],
        "peaks": {
            case: _peaks([i - e for i, e in _slots(truth, key, start_ns, end_ns)], start_ns)
            for case, key in zip(CASES, ("no_battery", "self_consumption", "actual"), strict=True)
        },
        "records": {"measured": measured, "stored": stored, "lost": measured - dropped - stored, "dropped": dropped},
        "commands": {
            "sent": totals["commands_sent"],
            "applied": totals["commands_applied"] + totals["commands_clamped"],
            "failed": totals["commands_failed"] + totals["commands_rejected"],
            "expired": totals["commands_expired"],
        },
        "orders": {key: value for key, value in gateway["counts"].items() if key.startswith("orders_")},
        "reflex": gateway["reflex"],
        "cycles": totals["cycles"],
        "starts": gateway["counts"]["starts"],
        "cycle_overrun_max_ms": gateway["cycle_overrun_max_ms"],
        "cycle_max_ms": gateway["cycle_max_ms"],
    }


def _slots(truth: Mapping[str, Any], case: str, start_ns: int, end_ns: int) -> list[tuple[float, float]]:
    rows = zip(truth["start_ns"], truth[case]["import_wh"], truth[case]["export_wh"], strict=True)
    return [(imported, exported) for slot, imported, exported in rows if start_ns <= slot < end_ns]


def _cost(truth: Mapping[str, Any], case: str, tariff: Tariff, start_ns: int, end_ns: int) -> float:
    """Retail cost of one home, in currency."""
    rows = zip(truth["start_ns"], truth[case]["import_wh"], truth[case]["export_wh"], strict=True)
    feed_in = tariff.feed_in_ticks()
    units = sum(
        imported * tariff.import_price_ticks(slot) - exported * feed_in
        for slot, imported, exported in rows
        if start_ns <= slot < end_ns
    )
    return float(units) / 1e7


def _fleet_net_wh(truth: Mapping[str, Any], case: str, start_ns: int, end_ns: int) -> list[float]:
    key = "actual" if case == "wattmesh" else case
    homes = [[i - e for i, e in _slots(home, key, start_ns, end_ns)] for home in truth["sites"].values()]
    return [sum(column) for column in zip(*homes, strict=False)]


def _peaks(net_wh: Sequence[float], start_ns: int) -> dict[str, float]:
    """Largest quarter-hour mean import of the run and of each month, and the mean of the days' largest."""
    kw = [energy * 4 / 1000 for energy in net_wh]
    days: dict[str, float] = {}
    months: dict[str, float] = {}
    for index, power in enumerate(kw):
        moment = datetime.fromtimestamp(start_ns // NS + index * 900, tz=_LOCAL)
        for book, key in ((days, f"{moment:%Y-%m-%d}"), (months, f"{moment:%Y-%m}")):
            book[key] = max(book.get(key, 0.0), power)
    return {
        "run_kw": max(kw, default=0.0),
        "mean_daily_kw": statistics.fmean(days.values()) if days else 0.0,
        "mean_monthly_kw": statistics.fmean(months.values()) if months else 0.0,
    }


def _fleet(sites: Mapping[str, Any], nets: Mapping[str, Sequence[float]], truth: Mapping[str, Any]) -> dict[str, Any]:
    cost = {
        key: sum(site["cost"][key] for site in sites.values())
        for key in ("wattmesh", "wattmesh_at_retail_alone", "no_battery", "self_consumption", "received_flexibility")
    }
    for case in ("no_battery", "self_consumption"):
        cost[f"saving_vs_{case}_percent"] = 100 * (1 - cost["wattmesh"] / cost[case]) if cost[case] else 0.0
    start_ns = min(home["start_ns"][0] for home in truth["sites"].values())
    return {
        "energy": {key: sum(site["energy"][key] for site in sites.values()) for key in ("bought_kwh", "sold_kwh")},
        "cost": cost,
        "peaks": {case: _peaks(net, start_ns) for case, net in nets.items()},
    }


def _market(cloud: Mapping[str, Any], gateways: Mapping[str, Any]) -> dict[str, Any]:
    """The cloud's books, and whether every gateway has just the commitments that the market made."""
    differing = []
    for name, gateway in gateways.items():
        made = cloud["commitments"].get(name, {})
        differing += [
            f"{name}@{slot}: {net} Wh at the gateway, {made.get(slot)} Wh at the market"
            for slot, net in gateway["commitments"].items()
            if made.get(slot) != net
        ]
    market = {key: value for key, value in cloud["market"].items() if key != "participants"}
    return {**market, "trades_distinct": len(set(cloud["trades"])), "commitments_that_differ": differing}


def _frequency(gateways: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
    events = [
        {
            "site": name,
            "kind": event["kind"],
            "start": _local(event["start_ns"]),
            "extreme_hz": event["extreme_hz"],
            "response_w": event["response_w"],
            "response_ms": event["response_ms"],
        }
        for name, gateway in gateways.items()
        for event in gateway["frequency_events"]
    ]
    times = [event["response_ms"] for event in events if event["response_ms"] is not None]
    return {
        "disturbances": truth["disturbances"],
        "events": events,
        "response_ms_median": statistics.median(times) if times else None,
        "response_ms_max": max(times, default=None),
    }


def _series(nets: Mapping[str, Sequence[float]], start_ns: int) -> dict[str, Any]:
    count = len(nets["wattmesh"])
    hours = [
        datetime.fromtimestamp(start_ns // NS + index * 900, tz=_LOCAL).strftime("%a %H:%M") for index in range(count)
    ]
    return {"hours": hours, "net_kw": {case: [round(e * 4 / 1000, 3) for e in net] for case, net in nets.items()}}


def _checks(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    cost, market, records = report["fleet"]["cost"], report["market"], report["records"]
    retail = cost["wattmesh_at_retail_alone"]
    settled = min(site["slots_settled"] for site in report["sites"].values())
    slots = int(report["days"] * 96 + 1e-3)  # whole slots only
    checks = [
        ("records lost", records["lost"], "0", records["lost"] == 0),
        ("records measured", records["measured"], "more than 0", records["measured"] > 0),
        ("ledger sums to", market["ledger_sum_units"], "0", market["ledger_sum_units"] == 0),
        ("trades, all distinct", market["trades"], "no trade twice", market["trades"] == market["trades_distinct"]),
        (
            "commitments that differ", len(market["commitments_that_differ"]), "0",
            not market["commitments_that_differ"],
        ),
        ("slots settled for every home", settled, f"{slots}", settled >= slots),
        ("cost", round(cost["wattmesh"], 2), f"below {cost['no_battery']:.2f} (no battery)",
         cost["wattmesh"] < cost["no_battery"]),
        ("cost", round(cost["wattmesh"], 2), f"below {cost['self_consumption']:.2f} (plain self-consumption)",
         cost["wattmesh"] < cost["self_consumption"]),
        # Trades only move money between homes: with them a fleet never pays more than at the retail tariff alone.
        ("cost with the market", round(cost["wattmesh"], 2), f"at most {retail:.2f} (same energy at retail alone)",
         cost["wattmesh"] <= retail + abs(retail) * _METERING_TOLERANCE),
    ]  # fmt: skip
    disturbed = len(report["frequency"]["disturbances"])
    if disturbed:
        seen = len(report["frequency"]["events"])
        checks.append(("frequency events seen", seen, f"at least {disturbed}", seen >= disturbed))
    return [{"name": n, "value": v, "wanted": w, "met": bool(m)} for n, v, w, m in checks]


def _notes(step_s: int) -> list[str]:
    return [
        f"Simulated time went in steps of {step_s} s, and each gateway's control cycle with it; at --speed 1 both are 1 s. "
        "Frequency was watched in real time throughout: simulated time stood still while a disturbance played.",
        "Without battery and plain self-consumption are simulated beside the real run from the same data with the same battery.",
        "Costs are retail imports less feed-in; energy held at the end beyond that at the start is valued at the cheapest tariff. "
        "Payments for demand response are not counted in them.",
        "The longest control cycle is in real milliseconds; in stepped time no cycle can run over its period.",
        "A record is one value of one point, or one message; lost ones are measured less dropped less stored.",
    ]


def write_report(report: Mapping[str, Any], path: Path) -> Path:
    """Write the JSON and the page beside it; returns the page's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    page = path.with_suffix(".html")
    page.write_text(render_page(report), encoding="utf-8")
    return page


def print_report(report: Mapping[str, Any]) -> None:
    """The checks and the main figures, for the terminal."""
    cost = report["fleet"]["cost"]
    lines = [
        "",
        f"{report['days']:g} days of {len(report['sites'])} homes in {report['elapsed_s']:.0f} s",
        f"  cost {cost['wattmesh']:.2f} USD: {-cost['saving_vs_no_battery_percent']:+.1f} % against no battery, "
        f"{-cost['saving_vs_self_consumption_percent']:+.1f} % against plain self-consumption",
        f"  {report['records']['measured']:,} records measured, {report['records']['stored']:,} stored, "
        f"{report['records']['lost']:,} lost",
        f"  {report['market']['trades']} trades, {report['market']['slots_settled']} slots settled, "
        f"ledger sums to {report['market']['ledger_sum_units']}",
        f"  {report['commands']['sent']:,} commands sent, {report['commands']['applied']:,} applied, "
        f"{report['commands']['expired']} expired; {len(report['frequency']['events'])} frequency events",
        "",
    ]
    lines += [
        f"  {'met   ' if check['met'] else 'MISSED'} {check['name']}: {check['value']} (wanted: {check['wanted']})"
        for check in report["checks"]
    ]
    print("\n".join(lines), flush=True)
