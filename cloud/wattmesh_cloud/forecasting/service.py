"""The forecasting agent: load and PV of every site, each hour, stored with their issue time and told to the sites.

Two models forecast side by side and are scored on what was metered. The seasonal one is in charge until the learned one has had
the smaller pinball loss for a day; whichever falls behind loses its place again. Persistence (the same quarter hour of the day
before) is scored beside them.
"""

from __future__ import annotations

import asyncio
import csv
import logging
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path

import numpy as np
from wattmesh_a2a.alarms import Alarm, Severity
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import message_from_json
from wattmesh_a2a.envelope import CLOUD_UNIT, FORECAST_AGENT, GATEWAY_AGENT, Address
from wattmesh_a2a.errors import ConfigurationError, ConflictError, WattmeshError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.messages import ForecastIssued, IntervalEnergy, Message
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.forecasting.config import ForecastingConfig
from wattmesh_cloud.forecasting.learned import LearnedSite
from wattmesh_cloud.forecasting.model import LEVELS, Array, Model, SeasonalQuantiles
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

log = logging.getLogger(__name__)

SLOT_S = 900
_SLOT_NS = SLOT_S * NS_PER_S
_SLOTS_A_DAY = 86_400 // SLOT_S
_HISTORY_SLOTS = 30 * _SLOTS_A_DAY
_LEARNED_HISTORY_SLOTS = 200 * _SLOTS_A_DAY
_SCORES = 2000
QUANTITIES = ("load_wh", "pv_wh")
PERSISTENCE = "persistence-24h"
_SCORED_SLOTS = 7 * _SLOTS_A_DAY
_EVIDENCE_SLOTS = _SLOTS_A_DAY
_BETTER = 0.98
"""Loss against the model in charge from which on another takes its place."""
_LOOK_AHEAD = 24
"""Quarter hours in which a changed forecast matters to a plan."""
_ALERTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a site's forecasts do; energies a slot, by quantity."""

    issued_age_s: float | None
    reading_age_s: float | None
    """Since the end of the newest metered quarter hour."""
    error_wh: Mapping[str, tuple[float, float]]
    """Mean pinball loss of the model in charge over the last day, and over the week."""
    losses: Mapping[str, Mapping[str, float]]
    """Model → mean pinball loss over the slots that all have forecast."""
    scored_slots: Mapping[str, int]
    in_charge: Mapping[str, str]
    widened: Mapping[str, tuple[str, ...]]


class ForecastingService:
    """See the module.

    Args:
        config: When and how far.
        store: Gets every forecast; gives the past after a restart.
        messenger: Serves ``ORG/cloud/forecasting``.
        clock: Of the forecasts.
        state: Not used yet; every service has one.
        org: Of all addresses.
        history: Folder of ``SITE.csv`` files (``slot_start_utc,load_wh,pv_wh``), read at every start.
        model: Makes the forecasts, alone; left out, the seasonal model and its challenger do.
        zone: Of the sites' clocks.
    """

    def __init__(
        self,
        config: ForecastingConfig,
        store: Store,
        messenger: Messenger,
        clock: Clock,
        state: Path,
        org: str,
        *,
        history: Path | None = None,
        model: Model | None = None,
        zone: tzinfo = UTC,
    ) -> None:
        del state
        self._config = config
        self._store = store
        self._messenger = messenger
        self._clock = clock
        self._org = org
        self._model = model or SeasonalQuantiles()
        self._zone = zone
        self._learns = config.learned and model is None
        self._learned: dict[str, LearnedSite] = {}
        self._candidates: dict[str, dict[str, dict[str, Forecast]]] = defaultdict(dict)
        """By site, quantity and model: the newest of each."""
        self._losses: dict[tuple[str, str], dict[str, deque[float]]] = defaultdict(dict)
        self.in_charge: dict[tuple[str, str], str] = {}
        """Model by site and quantity; the seasonal one where nothing is said."""
        self.alerts: deque[Alarm] = deque(maxlen=_ALERTS)
        self.address = Address(org, CLOUD_UNIT, FORECAST_AGENT)
        self._past: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
        self.latest: dict[str, dict[str, Forecast]] = {}
        self._errors: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_SCORES))
        self._tasks: set[asyncio.Task[None]] = set()
        self.issued = 0
        if history is not None:
            for path in sorted(history.glob("*.csv")):
                self._past[path.stem].update(read_history(path))

    def register(self) -> None:
        """Forecasting takes no requests yet."""

    def on_record(self, site: str, message: Message) -> None:
        """Learn from metered energy as it becomes durable, and keep score of the last forecast.

        What does not cover its whole slot, or claims to be of a slot that has not begun, teaches nothing.
        """
        if not isinstance(message, IntervalEnergy) or message.site_id != site or not message.complete:
            return
        if message.slot_s != SLOT_S or message.slot_start_ns % _SLOT_NS or message.slot_start_ns > self._clock.utc_ns():
            return
        self._past[site][message.slot_start_ns] = (float(message.load_wh), float(message.pv_wh))
        for quantity, actual in (("load_wh", message.load_wh), ("pv_wh", message.pv_wh)):
            self._score(site, quantity, message.slot_start_ns, float(actual))
            forecast = self.latest.get(site, {}).get(quantity)
            median = median_of(forecast, message.slot_start_ns) if forecast is not None else None
            if median is not None:
                self._errors[quantity].append(abs(actual - median))

    def _score(self, site: str, quantity: str, slot_ns: int, actual: float) -> None:
        """Add the loss of every model that had forecast this slot, and see who is in charge.

        Only forecasts that began with or before the slot count; a reading that comes again is scored again.
        """
        rows: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
        for name, forecast in self._candidates[site].get(quantity, {}).items():
            index = (slot_ns - forecast.start_ns) // _SLOT_NS
            if 0 <= index < len(forecast.values):
                rows[name] = (forecast.values[index], forecast.levels)
        before = self._past[site].get(slot_ns - _SLOTS_A_DAY * _SLOT_NS)
        if not rows or before is None:
            return
        rows[PERSISTENCE] = ([before[QUANTITIES.index(quantity)]] * len(LEVELS), LEVELS)
        losses = self._losses[site, quantity]
        for name, (values, levels) in rows.items():
            losses.setdefault(name, deque(maxlen=_SCORED_SLOTS)).append(pinball_loss(actual, values, levels))
        champion = self.in_charge.get((site, quantity), self._model.name)
        for name in rows:
            if name not in (champion, PERSISTENCE) and self._beats(losses, name, champion):
                self.in_charge[site, quantity] = name
                log.info("%s of %s: %s takes the place of %s", quantity, site, name, champion)

    @staticmethod
    def _beats(losses: Mapping[str, deque[float]], name: str, champion: str) -> bool:
        """Over the slots that both have forecast."""
        count = min(len(losses[name]), len(losses.get(champion, ())))
        if count < _EVIDENCE_SLOTS:
            return False
        mine, theirs = list(losses[name])[-count:], list(losses[champion])[-count:]
        return sum(mine) < _BETTER * sum(theirs)

    async def run(self) -> None:
        """Issue forecasts for ever; the first at once."""
        every = self._config.issue_every_s * NS_PER_S
        with self._clock.runner():
            await self._load()
            while True:
                await self._issue()
                now = self._clock.monotonic_ns()
                await self._clock.sleep_until_ns(now - now % every + every)

    async def finish(self) -> None:
        """End what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _load(self) -> None:
        now = self._clock.utc_ns()
        for partition in await asyncio.to_thread(self._store.partitions, Table.CONSUMER_METRICS):
            items = await asyncio.to_thread(
                self._store.query,
                Table.CONSUMER_METRICS,
                partition,
                now - (_LEARNED_HISTORY_SLOTS if self._learns else _HISTORY_SLOTS) * _SLOT_NS,
                now + _SLOT_NS,
                limit=100_000,
            )
            for item in items:
                if item.id == "interval":
                    self.on_record(partition, message_from_json("wattmesh.metering.interval.v1", dict(item.data)))

    async def _issue(self) -> None:
        now = self._clock.utc_ns()
        for site in sorted(self._past):
            if self._learns and site not in self._learned:  # a long history teaches it before the rest is forgotten
                await asyncio.to_thread(self._learned_of, site, dict(self._past[site]), now)
            self._forget(site, now)
            past = dict(self._past[site])  # a copy: records arrive on the loop while the thread computes
            forecasts = await asyncio.to_thread(self._forecasts_of, site, past, now)
            learned = await asyncio.to_thread(self._learned_of, site, past, now) if self._learns else ()
            forecasts = self._chosen(site, forecasts, learned)
            if not forecasts:
                continue
            await self._alert(site, forecasts, now)
            self.latest[site] = {forecast.quantity: forecast for forecast in forecasts}
            items = [
                Item(partition=site, time_ns=now, id=forecast.quantity, data=_data(forecast)) for forecast in forecasts
            ]
            await asyncio.to_thread(self._store.put, Table.FORECAST_DATA, items)
            self.issued += len(forecasts)
            task = asyncio.get_running_loop().create_task(self._send(site, ForecastIssued(forecasts=forecasts)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _learned_of(self, site: str, past: Mapping[int, tuple[float, float]], now_ns: int) -> tuple[Forecast, ...]:
        """The challenger's forecasts; none while it knows too little."""
        horizon_h = -(-self._config.horizon_s // 3600)
        model = self._learned.setdefault(site, LearnedSite(self._zone, horizon_h))
        start = now_ns - now_ns % _SLOT_NS
        model.learn(past, now_ns)
        tables = model.predict(start, self._config.horizon_s // SLOT_S)
        if tables is None:
            return ()
        return tuple(_forecast(site, quantity, now_ns, start, tables[quantity], model.name) for quantity in QUANTITIES)

    def _chosen(self, site: str, seasonal: tuple[Forecast, ...], learned: tuple[Forecast, ...]) -> tuple[Forecast, ...]:
        """Of each quantity the forecast of the model in charge; a quantity the seasonal model knows nothing of is left out."""
        others = {forecast.quantity: forecast for forecast in learned}
        result = []
        for forecast in seasonal:
            rival = others.get(forecast.quantity)
            mine = {forecast.model: forecast} | ({rival.model: rival} if rival is not None else {})
            self._candidates[site][forecast.quantity] = mine
            result.append(mine.get(self.in_charge.get((site, forecast.quantity), ""), forecast))
        return tuple(result)

    async def _alert(self, site: str, forecasts: Sequence[Forecast], now: int) -> None:
        """Tell of a forecast that differs from the one before by more than that one held likely and more than the set share."""
        for forecast in forecasts:
            before = self.latest.get(site, {}).get(forecast.quantity)
            change = material_change(before, forecast, self._config.material_change) if before is not None else None
            if change is None:
                continue
            alarm = Alarm(
                id=f"forecast-{site}-{forecast.quantity}-{now // NS_PER_S}",
                site_id=site,
                asset_id=None,
                severity=Severity.INFO,
                text=f"{forecast.quantity} of the next hours is {change:+.0%} against the forecast before",
                raised_ns=now,
                cleared_ns=now,
            )
            self.alerts.append(alarm)
            try:
                await self._messenger.emit(alarm, as_agent=self.address, valid_for_s=float(self._config.issue_every_s))
            except WattmeshError as error:
                log.info("changed forecast of %s not told: %s", site, error)

    async def _send(self, site: str, issued: ForecastIssued) -> None:
        """A forecast is worth sending until the next one."""
        expires = self._clock.utc_ns() + self._config.issue_every_s * NS_PER_S
        to = Address(self._org, site, GATEWAY_AGENT)
        try:
            await self._messenger.request(to, issued, expires_ns=expires, as_agent=self.address, timeout_s=60.0)
        except WattmeshError as error:
            log.info("forecast for %s not delivered: %s", site, error)

    def _forget(self, site: str, now: int) -> None:
        """Drop what no forecast looks at any more."""
        past, oldest = self._past[site], now - (_HISTORY_SLOTS + 1) * _SLOT_NS
        for slot in [slot for slot in past if slot < oldest]:
            del past[slot]

    def forecast(self, site: str, now_ns: int) -> tuple[Forecast, ...]:
        """Load and PV of a site from what is known at ``now_ns``; nothing for a site without a past."""
        return self._forecasts_of(site, dict(self._past.get(site, {})), now_ns)

    def _forecasts_of(self, site: str, past: Mapping[int, tuple[float, float]], now_ns: int) -> tuple[Forecast, ...]:
        start = now_ns - now_ns % _SLOT_NS
        known = [slot for slot in past if start - _HISTORY_SLOTS * _SLOT_NS <= slot < start]
        if not known:
            return ()
        first = min(known)
        length = (start - first) // _SLOT_NS
        values = np.full((2, length), np.nan)
        for slot in known:
            values[:, (slot - first) // _SLOT_NS] = past[slot]
        slots = self._config.horizon_s // SLOT_S
        forecasts = []
        for quantity, history in zip(QUANTITIES, values, strict=True):
            table = self._model.predict(history, first // _SLOT_NS % _SLOTS_A_DAY, slots, _SLOTS_A_DAY)
            if np.isnan(table).any():
                continue  # not known is not zero: no forecast of it
            forecasts.append(_forecast(site, quantity, now_ns, start, table, self._model.name))
        return tuple(forecasts)

    def reasons(self, site: str) -> tuple[str, ...]:
        """Why a site's forecasts are wider than usual; empty when nothing was wrong."""
        model = self._learned.get(site)
        if model is None:
            return ()
        return tuple(f"{quantity}: {reason}" for quantity, found in model.reasons.items() for reason in found)

    def health(self, site: str, now_ns: int) -> Health:
        """What a supervisor looks at."""
        latest, past = self.latest.get(site, {}), self._past.get(site)
        errors, means, scored, charge = {}, {}, {}, {}
        for quantity in QUANTITIES:
            losses = self._losses.get((site, quantity), {})
            name = self.in_charge.get((site, quantity), self._model.name)
            count = min((len(one) for one in losses.values()), default=0)
            charge[quantity], scored[quantity] = name, count
            if count:
                means[quantity] = {
                    model: float(np.mean(list(one)[-count:])) for model, one in losses.items() if model != PERSISTENCE
                }
            own = list(losses.get(name, ()))
            if len(own) > _SLOTS_A_DAY:
                errors[quantity] = (float(np.mean(own[-_SLOTS_A_DAY:])), float(np.mean(own)))
        model = self._learned.get(site)
        return Health(
            issued_age_s=(now_ns - min(one.issued_ns for one in latest.values())) / NS_PER_S if latest else None,
            reading_age_s=(now_ns - max(past) - _SLOT_NS) / NS_PER_S if past else None,
            error_wh=errors,
            losses=means,
            scored_slots=scored,
            in_charge=charge,
            widened={} if model is None else {name: tuple(why) for name, why in model.reasons.items() if why},
        )

    async def retrain(self, site: str) -> None:
        """Learn a site's model anew from all that is stored; takes effect with the next issue.

        Raises:
            ConflictError: Nothing is learned here, or nothing is known of the site.
        """
        if not self._learns or not self._past.get(site):
            raise ConflictError(f"no model of {site} can learn anew")
        now = self._clock.utc_ns()
        first = now - _LEARNED_HISTORY_SLOTS * _SLOT_NS
        items = await asyncio.to_thread(
            self._store.query, Table.CONSUMER_METRICS, site, first, now + _SLOT_NS, limit=100_000
        )
        past = dict(self._past[site])
        for item in items:
            if item.id == "interval" and item.data.get("complete"):
                past[item.time_ns] = (float(str(item.data["load_wh"])), float(str(item.data["pv_wh"])))
        model = LearnedSite(self._zone, -(-self._config.horizon_s // 3600))
        await asyncio.to_thread(model.learn, past, now)
        self._learned[site] = model

    def choose(self, site: str, quantity: str, model: str) -> None:
        """Put a model in charge of a quantity; the score goes on, and may take the place from it again.

        Raises:
            ConflictError: It has not forecast this quantity.
        """
        if model not in self._candidates.get(site, {}).get(quantity, {}):
            raise ConflictError(f"{model} does not forecast {quantity} of {site}")
        self.in_charge[site, quantity] = model

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console."""
        errors: dict[str, JsonValue] = {
            name: round(float(np.mean(values)), 1) for name, values in self._errors.items() if values
        }
        return {
            "issued": self.issued,
            "sites": sorted(self.latest),
            "model": self._model.name,
            "mean_error_wh": errors,
            "skill": self._skill(),
            "in_charge": {f"{site} {quantity}": name for (site, quantity), name in sorted(self.in_charge.items())},
            "widened": {
                f"{site} {quantity}": list(reasons)
                for site, model in sorted(self._learned.items())
                for quantity, reasons in model.reasons.items()
                if reasons
            },
            "alerts": [alarm.text for alarm in self.alerts],
        }

    def _skill(self) -> dict[str, JsonValue]:
        """1 − loss over persistence's loss, of each quantity and model, over all sites' last week; above 0 is better."""
        sums: dict[tuple[str, str], float] = defaultdict(float)
        for (_, quantity), losses in self._losses.items():
            count = min(len(one) for one in losses.values())
            for name, one in losses.items():
                sums[quantity, name] += sum(list(one)[-count:]) if count else 0.0
        result: dict[str, JsonValue] = {}
        for (quantity, name), total in sorted(sums.items()):
            peer = sums[quantity, PERSISTENCE]
            if name != PERSISTENCE and peer > 0:
                result[f"{quantity} {name}"] = round(1 - total / peer, 3)
        return result


def pinball_loss(actual: float, values: Sequence[float], levels: Sequence[float]) -> float:
    """Mean pinball loss of a row of quantiles (Koenker and Bassett 1978), in the unit of ``actual``."""
    pairs = zip(values, levels, strict=True)
    return sum(max(level * (actual - value), (level - 1) * (actual - value)) for value, level in pairs) / len(levels)


def material_change(before: Forecast, after: Forecast, share: float) -> float | None:
    """Relative change of the median energy of the next six hours; none when it is not worth a word.

    Material is what is more than ``share`` of what was expected and lies outside what the forecast before held likely.
    """
    middle, width = 0.0, 0.0
    now = 0.0
    for index, row in enumerate(after.values[:_LOOK_AHEAD]):
        at = (after.start_ns - before.start_ns) // _SLOT_NS + index
        if not 0 <= at < len(before.values):
            return None
        old = before.values[at]
        now += row[len(row) // 2]
        middle += old[len(old) // 2]
        width += (old[-1] - old[0]) / 2
    change = now - middle
    if middle <= 0 or abs(change) <= share * middle or abs(change) <= width:
        return None
    return change / middle


def _forecast(site: str, quantity: str, now_ns: int, start_ns: int, table: Array, model: str) -> Forecast:
    return Forecast(
        site_id=site,
        quantity=quantity,
        issued_ns=now_ns,
        start_ns=start_ns,
        slot_s=SLOT_S,
        levels=LEVELS,
        values=tuple(tuple(round(float(value), 1) for value in row) for row in table),
        model=model,
    )


def median_of(forecast: Forecast, slot_ns: int) -> float | None:
    """The middle quantile of a slot; none outside the horizon."""
    index = (slot_ns - forecast.start_ns) // (forecast.slot_s * NS_PER_S)
    if not 0 <= index < len(forecast.values):
        return None
    return forecast.values[index][len(forecast.levels) // 2]


def read_history(path: Path) -> dict[int, tuple[float, float]]:
    """Slots of a history file; raises :class:`ConfigurationError` naming file and line."""
    rows: dict[int, tuple[float, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        head = next(reader, [])
        if head != ["slot_start_utc", "load_wh", "pv_wh"]:
            raise ConfigurationError(f"{path}:1: the first line has to be slot_start_utc,load_wh,pv_wh")
        for number, row in enumerate(reader, start=2):
            try:
                moment = datetime.fromisoformat(row[0])
                values = (float(row[1]), float(row[2]))
            except (ValueError, IndexError) as error:
                raise ConfigurationError(f"{path}:{number}: not a time and two numbers: {','.join(row)}") from error
            if moment.tzinfo is None or moment.timestamp() % SLOT_S or not all(0 <= value < 1e9 for value in values):
                raise ConfigurationError(f"{path}:{number}: a quarter hour in UTC and energies from 0 on are needed")
            rows[round(moment.timestamp()) * NS_PER_S] = values
    return rows


def _data(forecast: Forecast) -> dict[str, JsonValue]:
    return {
        "start_ns": forecast.start_ns,
        "slot_s": forecast.slot_s,
        "levels": list(forecast.levels),
        "values": [list(row) for row in forecast.values],
        "model": forecast.model,
    }
