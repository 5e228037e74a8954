"""Early warning of equipment trouble: each device against its own past and its physics, one value a day and feature.

A feature is made so that a healthy device's is nearly constant: the yield against a clear sky, a string's share, the energy in a
per cent of charge, the warmth at power, the share of failed polls. :mod:`wattmesh_edge.change` finds when one has changed for
the worse. What is found is told with the evidence, how sure it is, and what a person can do.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from wattmesh_a2a.alarms import Alarm, Severity
from wattmesh_a2a.devices import AssetKind
from wattmesh_drivers.driver import Driver

from wattmesh_edge.change import Change, baseline_of, find_change, values_between_false_alarms
from wattmesh_edge.image import ImageMaker
from wattmesh_edge.signs import Resistance, imbalance, voltage_unbalance
from wattmesh_edge.sun import Plane, clear_sky_share

DAY_NS = 86_400_000_000_000
SAMPLE_NS = 60_000_000_000
"""A sample a minute is enough for all features."""
KEEP_DAYS = 1100
_STRING = re.compile(r"string_(\d+)_power_w")
_SUNNY = 0.3
"""Share of the rated power under a clear sky from which on a sample tells of the yield."""
_NOON = 0.8
_SWING_PERCENT = 30.0
"""Smallest move of the state of charge that tells of the capacity."""
_LIFE_TOLD = 0.8
"""Share of the guaranteed cycles from which on the owner hears of it."""
_ONE_WAY = 0.95
"""Of a battery's energy; only its constancy matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """How one quantity is watched."""

    text: str
    unit: str
    down: bool
    """Whether less is worse."""
    relative: bool
    """Whether deviations are shares of the level."""
    floor: float
    """Smallest deviation that is taken for noise."""
    least: float
    """Smallest change that a person should hear of."""
    days: int
    """Days a value: the best of them counts where weather hides a device."""
    first: int
    """Values of the baseline."""
    severity: Severity
    advice: str


FEATURES: Mapping[str, Feature] = {
    "yield": Feature(
        text="yield under a clear sky", unit="of the clear sky's", down=True, relative=True, floor=0.015, least=0.04,
        days=14, first=4, severity=Severity.WARNING,
        advice="look for dirt and shade, then measure the strings; clean or repair where it pays",
    ),
    "string": Feature(
        text="share of the plant's power", unit="", down=True, relative=True, floor=0.02, least=0.08, days=1, first=14,
        severity=Severity.CRITICAL,
        advice="check the string's fuse, plugs and modules; one that gives nothing may have an open plug",
    ),
    "capacity": Feature(
        text="energy between empty and full", unit="Wh", down=True, relative=True, floor=0.01, least=0.05, days=1, first=21,
        severity=Severity.WARNING, advice="compare with the maker's guarantee; have the cells balanced or a module replaced",
    ),
    "warmth": Feature(
        text="warming at high power", unit="K", down=False, relative=False, floor=1.5, least=6.0, days=1, first=14,
        severity=Severity.WARNING,
        advice="check the fan, clean its filter, and give the device air; heat ages it and cuts its power",
    ),
    "resistance": Feature(
        text="internal resistance at 25 °C", unit="mΩ", down=False, relative=True, floor=0.04, least=0.20, days=1, first=21,
        severity=Severity.WARNING,
        advice="have the cell voltages under load and the terminals' torque checked; a hot or loose terminal is a fire hazard",
    ),
    "cycling": Feature(
        text="full cycles a day", unit="", down=False, relative=False, floor=0.2, least=1.0, days=1, first=21,
        severity=Severity.INFO,
        advice="see with wattmesh why what moves the battery so often: two controllers against each other age it for nothing",
    ),
    "phases": Feature(
        text="imbalance of the phases' powers", unit="", down=False, relative=False, floor=0.01, least=0.08, days=1, first=14,
        severity=Severity.WARNING, advice="check the device's AC fuses and terminals phase by phase, and its own messages",
    ),
    "voltages": Feature(
        text="unbalance of the phases' voltages", unit="", down=False, relative=False, floor=0.003, least=0.012, days=1,
        first=14, severity=Severity.CRITICAL,
        advice="have the neutral conductor and the main terminals checked soon: a loose neutral puts dangerous voltages on devices",
    ),
    "failures": Feature(
        text="polls without an answer", unit="", down=False, relative=False, floor=0.004, least=0.02, days=1, first=14,
        severity=Severity.INFO, advice="check cable, terminator and plugs of the bus, or the network's reception at the device",
    ),
}  # fmt: skip


@dataclass(slots=True)
class _Day:
    """What a day of one device has told so far."""

    ratios: list[tuple[float, float]] = field(default_factory=list)
    """Clear sky's share and the plant's part of it."""
    strings: dict[str, float] = field(default_factory=dict)
    coolest: float | None = None
    hot: list[float] = field(default_factory=list)
    capacities: list[float] = field(default_factory=list)
    resistance: Resistance = field(default_factory=Resistance)
    through_wh: float = 0.0
    """Energy into and out of a battery."""
    imbalances: list[float] = field(default_factory=list)
    unbalances: list[float] = field(default_factory=list)
    polls: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Swing:
    """A move of a battery's charge in one direction."""

    from_percent: float
    to_percent: float
    energy_wh: float = 0.0


class Maintenance:
    """Watches a site's devices.

    Args:
        site_id: The site.
        drivers: By device.
        maker: Reads good and fresh values.
        planes: Where each inverter's modules look; without one its yield is not watched.
        db: The gateway's database: a value a day, device and feature.
        guaranteed_cycles: Full cycles of each battery's guarantee, where it is known.
    """

    def __init__(
        self,
        site_id: str,
        drivers: Mapping[str, Driver],
        maker: ImageMaker,
        planes: Mapping[str, Plane],
        db: sqlite3.Connection,
        guaranteed_cycles: Mapping[str, float] | None = None,
    ) -> None:
        self._guaranteed = guaranteed_cycles or {}
        self._site = site_id
        self._drivers = drivers
        self._maker = maker
        self._planes = planes
        self._db = db
        self._day = 0
        self._due_ns = 0
        self._last_ns = 0
        self._days: dict[str, _Day] = {}
        self._swings: dict[str, _Swing] = {}
        self._polled = dict.fromkeys(drivers, (0, 0))
        self.alarms: dict[str, Alarm] = {}
        """What stands, by id."""
        with db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS health (device TEXT, feature TEXT, day INTEGER, value REAL NOT NULL,"
                " PRIMARY KEY (device, feature, day)) WITHOUT ROWID"
            )
            db.execute(
                "CREATE TABLE IF NOT EXISTS cycled (device TEXT PRIMARY KEY, cycles REAL NOT NULL) WITHOUT ROWID"
            )
        for alarm in self._found(0):
            self.alarms[alarm.id] = alarm

    def observe(self, now_ns: int, *, limited: bool = False) -> list[Alarm]:
        """Take what the devices told in this cycle; once a minute at most.

        Args:
            now_ns: UTC.
            limited: Whether production is curtailed, which says nothing of the plant.

        Returns:
            Alarms that were raised or cleared, once a day at most.
        """
        if self._last_ns and now_ns < self._last_ns:  # the clock was set back: wait for the day to come again
            self._due_ns = min(self._due_ns, now_ns + SAMPLE_NS)
        if now_ns < self._due_ns:
            return []
        hours = (now_ns - self._last_ns) / 3.6e12
        self._due_ns = now_ns - now_ns % SAMPLE_NS + SAMPLE_NS
        self._last_ns = now_ns
        changed = []
        if now_ns // DAY_NS != self._day:
            if self._day:
                self._close_day()
                changed = self._compare(now_ns)
            self._day = now_ns // DAY_NS
            self._days = {}
        for name, driver in self._drivers.items():
            day = self._days.setdefault(name, _Day())
            self._count_polls(name, driver, day)
            if driver.asset.kind is AssetKind.INVERTER:
                self._inverter(name, driver, day, now_ns, limited=limited)
            elif driver.asset.kind is AssetKind.BATTERY:
                self._battery(name, day, now_ns, hours)
                self._cells(name, driver, day, now_ns, hours)
            self._phases(name, driver, day, now_ns)
            self._warmth(name, driver, day, now_ns)
        return changed

    # -- what a day tells

    def _count_polls(self, name: str, driver: Driver, day: _Day) -> None:
        good, failed = driver.counters["polls"], driver.counters["failed_polls"]
        good_before, failed_before = self._polled[name]
        self._polled[name] = good, failed
        day.polls += max(0, good - good_before) + max(0, failed - failed_before)
        day.failed += max(0, failed - failed_before)

    def _inverter(self, name: str, driver: Driver, day: _Day, now_ns: int, *, limited: bool) -> None:
        power = self._maker.read(name, "active_power_w", now_ns)
        rated, plane = driver.asset.rated_power_w, self._planes.get(name)
        if power is not None and rated and plane is not None and not limited:
            share = clear_sky_share(plane, now_ns)
            if (
                share >= _SUNNY and -power < 0.98 * rated
            ):  # at its rating an inverter clips, and says nothing of its modules
                day.ratios.append((share, -power / (share * rated)))
        for point in driver.asset.points:
            if (match := _STRING.fullmatch(point.id)) is not None:
                value = self._maker.read(name, point.id, now_ns)
                if value is not None:
                    day.strings[match[1]] = day.strings.get(match[1], 0.0) + abs(value)

    def _battery(self, name: str, day: _Day, now_ns: int, hours: float) -> None:
        soc = self._maker.read(name, "soc_percent", now_ns)
        power = self._maker.read(name, "active_power_w", now_ns)
        if soc is None or power is None or hours > 0.5:
            self._swings.pop(name, None)
            return
        swing = self._swings.get(name)
        if swing is None:
            self._swings[name] = _Swing(soc, soc)
            return
        turned = (soc - swing.to_percent) * (swing.to_percent - swing.from_percent) < 0
        if turned and abs(soc - swing.to_percent) >= 1:
            if abs(swing.to_percent - swing.from_percent) >= _SWING_PERCENT:
                energy = swing.energy_wh * _ONE_WAY if swing.energy_wh > 0 else swing.energy_wh / _ONE_WAY
                day.capacities.append(100 * energy / (swing.to_percent - swing.from_percent))
            swing = self._swings[name] = _Swing(swing.to_percent, soc)
        swing.energy_wh += power * hours
        if (soc - swing.to_percent) * (swing.to_percent - swing.from_percent) >= 0:
            swing.to_percent = soc

    def _cells(self, name: str, driver: Driver, day: _Day, now_ns: int, hours: float) -> None:
        """Resistance and cycles."""
        read = self._maker.read
        soc, power, rated = (
            read(name, "soc_percent", now_ns),
            read(name, "active_power_w", now_ns),
            driver.asset.rated_power_w,
        )
        if soc is None or power is None or not rated:
            return
        if hours <= 0.5:
            day.through_wh += abs(power) * hours
        volts, amperes = read(name, "dc_voltage_v", now_ns), read(name, "dc_current_a", now_ns)
        if amperes is not None and volts is not None and abs(power) > 0.05 * rated:
            amperes = (
                abs(amperes) if power > 0 else -abs(amperes)
            )  # templates agree on the power's sign, not on the current's
        day.resistance.take(now_ns, volts, amperes, soc, read(name, "temperature_battery_degc", now_ns), rated)

    def _phases(self, name: str, driver: Driver, day: _Day, now_ns: int) -> None:
        read, kind, rated = self._maker.read, driver.asset.kind, driver.asset.rated_power_w
        if kind is AssetKind.METER:
            found = voltage_unbalance([read(name, f"voltage_l{phase}_v", now_ns) for phase in (1, 2, 3)])
            if found is not None:
                day.unbalances.append(found)
        elif kind in {AssetKind.INVERTER, AssetKind.BATTERY} and rated:
            powers = [read(name, f"active_power_l{phase}_w", now_ns) for phase in (1, 2, 3)]
            if None in powers:
                amperes = [read(name, f"current_l{phase}_a", now_ns) for phase in (1, 2, 3)]
                volts = [read(name, f"voltage_l{phase}_v", now_ns) for phase in (1, 2, 3)]
                powers = [None if a is None or v is None else abs(a) * v for a, v in zip(amperes, volts, strict=True)]
            found = imbalance(powers, rated)
            if found is not None:
                day.imbalances.append(found)

    def _warmth(self, name: str, driver: Driver, day: _Day, now_ns: int) -> None:
        rated = driver.asset.rated_power_w
        for point in ("temperature_cabinet_degc", "temperature_battery_degc"):
            warm = self._maker.read(name, point, now_ns)
            if warm is None or not rated:
                continue
            day.coolest = warm if day.coolest is None else min(day.coolest, warm)
            power = self._maker.read(name, "active_power_w", now_ns)
            if power is not None and abs(power) > 0.5 * rated:
                day.hot.append(warm)
            return

    def _close_day(self) -> None:
        rows: list[tuple[str, str, float]] = []
        for name, day in self._days.items():
            # Around noon alone: in the morning and the evening the modules' true direction matters more than their state.
            best = max((share for share, _ in day.ratios), default=0.0)
            ratios = sorted(ratio for share, ratio in day.ratios if share >= _NOON * best)
            if len(ratios) >= 8:
                rows.append((name, "yield", ratios[int(0.8 * len(ratios))]))
            whole = sum(day.strings.values())
            if len(day.strings) > 1 and whole > 0:
                rows += [(name, f"string {number}", part / whole) for number, part in day.strings.items()]
            if day.capacities:
                rows.append((name, "capacity", sorted(day.capacities)[len(day.capacities) // 2]))
            if len(day.hot) >= 4 and day.coolest is not None:
                rows.append((name, "warmth", sum(day.hot) / len(day.hot) - day.coolest))
            energy = self._drivers[name].asset.rated_energy_wh
            if energy and day.through_wh:
                rows.append((name, "cycling", day.through_wh / 2 / energy))
            if (milliohms := day.resistance.value()) is not None and milliohms > 0:
                rows.append((name, "resistance", milliohms))
            if len(day.imbalances) >= 20:
                rows.append((name, "phases", median(day.imbalances)))
            if len(day.unbalances) >= 20:  # the worst hours of a day tell: a loose neutral shows under load
                rows.append((name, "voltages", sorted(day.unbalances)[int(0.95 * len(day.unbalances))]))
            if day.polls >= 60:
                rows.append((name, "failures", day.failed / day.polls))
        self._db.executemany(
            "INSERT OR REPLACE INTO health VALUES (?, ?, ?, ?)",
            [(name, one, self._day, value) for name, one, value in rows],
        )
        old = self._day - KEEP_DAYS
        self._db.execute(
            "INSERT INTO cycled SELECT device, SUM(value) FROM health WHERE feature = 'cycling' AND day < ? GROUP BY device"
            " ON CONFLICT (device) DO UPDATE SET cycles = cycles + excluded.cycles",
            (old,),
        )
        self._db.execute("DELETE FROM health WHERE day < ?", (old,))

    def cycles(self, battery: str) -> float:
        """Equivalent full cycles of a battery since it is watched, the running day left out."""
        row = self._db.execute(
            "SELECT COALESCE(SUM(value), 0) FROM health WHERE device = ? AND feature = 'cycling'", (battery,)
        ).fetchone()
        kept = self._db.execute("SELECT cycles FROM cycled WHERE device = ?", (battery,)).fetchone()
        return float(row[0]) + (float(kept[0]) if kept else 0.0)

    # -- what the days together tell

    def _compare(self, now_ns: int) -> list[Alarm]:
        """Alarms that are new, and those that are over."""
        found = {alarm.id: alarm for alarm in self._found(now_ns)}
        changed = [alarm for key, alarm in found.items() if key not in self.alarms]
        changed += [replace(alarm, cleared_ns=now_ns) for key, alarm in self.alarms.items() if key not in found]
        self.alarms = {key: self.alarms.get(key, alarm) for key, alarm in found.items()}
        return changed

    def _found(self, now_ns: int) -> list[Alarm]:
        alarms = []
        for device, feature in self._db.execute("SELECT DISTINCT device, feature FROM health").fetchall():
            model = FEATURES.get(feature.split()[0])
            if model is None or device not in self._drivers:
                continue
            rows = self._db.execute(
                "SELECT day, value FROM health WHERE device = ? AND feature = ? ORDER BY day", (device, feature)
            ).fetchall()
            days, values = in_blocks(rows, model)
            change = detect(values, model)
            if change is not None:
                alarms.append(self._alarm(device, feature, model, change, days, now_ns))
        return alarms + self._worn(now_ns)

    def _worn(self, now_ns: int) -> list[Alarm]:
        """Batteries that have made most of the cycles they are guaranteed for."""
        alarms = []
        for battery, life in self._guaranteed.items():
            share = self.cycles(battery) / life
            if share < _LIFE_TOLD:
                continue
            severity = Severity.WARNING if share >= 1 else Severity.INFO
            alarms.append(
                Alarm(
                    id=f"{self._site}-{battery}-cycle-life-{'over' if share >= 1 else 'near'}",
                    site_id=self._site,
                    asset_id=battery,
                    severity=severity,
                    text=(
                        f"{battery}: {share * life:.0f} full cycles counted, {100 * share:.0f} % of the {life:g} that it is "
                        f"guaranteed for. Have its capacity measured while the guarantee holds, and plan for its replacement."
                    ),
                    raised_ns=now_ns or (self._day + 1) * DAY_NS,
                )
            )
        return alarms

    def _alarm(
        self, device: str, feature: str, model: Feature, change: Change, days: Sequence[int], now_ns: int
    ) -> Alarm:
        moved = change.level - change.before
        told = f"{100 * moved / change.before:+.0f} %" if model.relative else f"{moved:+.3g} {model.unit}".rstrip()
        name = f" of string {feature.split()[1]}" if " " in feature else ""
        wrong_years = values_between_false_alarms() * model.days / 365
        began = days[change.began]
        since = _date(began)
        text = (
            f"{device}: {model.text}{name} is {change.level:.3g} {model.unit}".rstrip()
            + f", {told} against {change.before:.3g} before, since about {since}"
            f" (by chance less than once in {wrong_years:.0f} years). {model.advice}."
        )
        return Alarm(
            id=f"{self._site}-{device}-{feature.replace(' ', '-')}-{began}",
            site_id=self._site,
            asset_id=device,
            severity=model.severity,
            text=text,
            raised_ns=now_ns or (days[change.index] + 1) * DAY_NS,
        )


def in_blocks(rows: Sequence[tuple[int, float]], model: Feature) -> tuple[list[int], list[float]]:
    """Days and values as the detector takes them: of each block of days the best value, whole blocks alone."""
    if model.days == 1:
        return [day for day, _ in rows], [value for _, value in rows]
    blocks: dict[int, tuple[int, float]] = {}
    for day, value in rows:
        block = (day - rows[0][0]) // model.days
        best = blocks.get(block)
        if best is None or (value > best[1]) == model.down:
            blocks[block] = (day, value)
    last = (rows[-1][0] - rows[0][0] + 1) // model.days if rows else 0
    kept = [blocks[block] for block in sorted(blocks) if block < last]
    return [day for day, _ in kept], [value for _, value in kept]


def detect(values: Sequence[float], model: Feature) -> Change | None:
    """What a feature's values tell."""
    level = baseline_of(values, model.first, 0.0)
    if level is None:
        return None
    scale = abs(level.level) if model.relative else 1.0
    baseline = baseline_of(values, model.first, model.floor * scale)
    assert baseline is not None
    return find_change(values, baseline, down=model.down, least=model.least * scale)


def _date(day: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(day * 86_400, tz=UTC).date().isoformat()
