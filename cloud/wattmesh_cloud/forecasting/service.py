"""The forecasting agent: load and PV of every site, each hour, stored with their issue time and told to the sites.

Models forecast side by side and are scored on what was metered. The seasonal one is in charge until another has had the smaller
pinball loss over a day of common slots; whichever falls behind loses its place again. Persistence (the same quarter hour of the day
before) is scored beside them. A model that does much worse than in the days before is taught anew at once, beside its schedule; a
site's forecasts are made anew inside the hour when three metered quarter hours in a row were outside what was held likely.
"""

from __future__ import annotations

import asyncio
import csv
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

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
from wattmesh_cloud.forecasting.scores import Scores
from wattmesh_cloud.forecasting.side import NAME as SIDE_MODEL
from wattmesh_cloud.forecasting.side import Key, SideForecasts
from wattmesh_cloud.forecasting.similar import NAME as SIMILAR_SITES
from wattmesh_cloud.forecasting.similar import borrowed
from wattmesh_cloud.forecasting.weather import Place
from wattmesh_cloud.forecasting.weather_pv import NAME as WEATHER_PV
from wattmesh_cloud.forecasting.weather_pv import weather_pv
from wattmesh_cloud.forecasting.weather_service import WeatherDesk
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
_MISSES = 3
"""Quarter hours in a row outside what was held likely (10 to 90 %) after which a site's forecast is made anew."""
_SKILL_EVERY_NS = 86_400 * NS_PER_S
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
        weather: Weather of the sites' places; none for none.
        places: Where a site is.
        observations: Price, flexibility and frequency of the quarter hour that has just ended.
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
        weather: WeatherDesk | None = None,
        places: Callable[[str], Place | None] = lambda site: None,
        observations: Callable[[int], Mapping[Key, float]] = lambda slot_ns: {},
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
        self.scores: dict[tuple[str, str], Scores] = defaultdict(Scores)
        """By site and quantity."""
        self._misses: dict[tuple[str, str], int] = defaultdict(int)
        self._early: set[str] = set()
        """Sites whose forecast is to be made anew before its time."""
        self._weather, self._places = weather, places
        self._observations = observations
        self.side = SideForecasts()
        self._weather_reasons: dict[str, tuple[str, ...]] = {}
        self._skill_day = -1
        self.retrained = 0
        self.early = 0
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
            if forecast is not None:
                self._watch(site, forecast, message.slot_start_ns, float(actual))

    def _watch(self, site: str, forecast: Forecast, slot_ns: int, actual: float) -> None:
        """Count quarter hours in a row that were not held likely; enough of them make a new forecast before its time."""
        index = (slot_ns - forecast.start_ns) // _SLOT_NS
        if not 0 <= index < len(forecast.values):
            return
        row, key = forecast.values[index], (site, forecast.quantity)
        self._misses[key] = 0 if row[0] <= actual <= row[-1] else self._misses[key] + 1
        if self._misses[key] >= _MISSES:
            self._misses[key] = 0
            self._early.add(site)

    def _score(self, site: str, quantity: str, slot_ns: int, actual: float) -> None:
        """Add the loss of every model that had forecast this slot, and see who is in charge.

        Only forecasts that began with or before the slot count; a reading that comes again is scored in the place of the first.
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
        scores = self.scores[site, quantity]
        scores.add(slot_ns, {name: pinball_loss(actual, values, levels) for name, (values, levels) in rows.items()})
        champion = self.in_charge.get((site, quantity), self._model.name)
        for name in rows:
            if name not in (champion, PERSISTENCE) and scores.beats(name, champion):
                self.in_charge[site, quantity] = champion = name
                log.info("%s of %s: %s is in charge now", quantity, site, name)

    async def run(self) -> None:
        """Issue forecasts for ever; the first at once."""
        every = self._config.issue_every_s * NS_PER_S
        with self._clock.runner():
            await self._load()
            due = self._clock.monotonic_ns()
            while True:
                now = self._clock.monotonic_ns()
                utc = self._clock.utc_ns()
                self.side.observe(utc - utc % _SLOT_NS - _SLOT_NS, self._observations(utc - utc % _SLOT_NS - _SLOT_NS))
                if now >= due:
                    due = now - now % every + every
                    await self._issue()
                elif self._early:
                    self.early += len(self._early)
                    await self._issue(tuple(sorted(self._early)))
                step = min(every, _SLOT_NS)
                await self._clock.sleep_until_ns(now - now % step + step)

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

    async def _issue(self, only: tuple[str, ...] | None = None) -> None:
        """New forecasts of all sites, or of some before their time."""
        now = self._clock.utc_ns()
        self._early.difference_update(only or self._past)
        if self._weather is not None:
            places = {site: place for site in sorted(self._past) if (place := self._places(site)) is not None}
            await self._weather.refresh(places, now)
        for site in sorted(self._past) if only is None else only:
            if self._learns and site not in self._learned:  # a long history teaches it before the rest is forgotten
                await asyncio.to_thread(self._learned_of, site, dict(self._past[site]), now)
            self._forget(site, now)
            past = dict(self._past[site])  # a copy: records arrive on the loop while the thread computes
            forecasts = await asyncio.to_thread(self._forecasts_of, site, past, now)
            rivals = await asyncio.to_thread(self._rivals_of, site, past, now)
            forecasts = self._chosen(site, forecasts, rivals)
            if not forecasts:
                continue
            await self._alert(site, forecasts, now)
            self.latest[site] = {forecast.quantity: forecast for forecast in forecasts}
            await self._keep(site, forecasts, now)
            self._spawn(self._send(site, ForecastIssued(forecasts=forecasts)))
        if only is None:
            await self._issue_side(now)
            await self._keep_skill(now)

    def _rivals_of(self, site: str, past: Mapping[int, tuple[float, float]], now_ns: int) -> tuple[Forecast, ...]:
        """What stands beside the seasonal model: the learned one, one by weather, and one by similar sites; on a thread."""
        if not self._learns:
            return ()
        found = list(self._learned_of(site, past, now_ns))
        start, slots = now_ns - now_ns % _SLOT_NS, self._config.horizon_s // SLOT_S
        by_weather = self._weather_pv(site, past, now_ns)
        if by_weather is not None:
            found.append(_forecast(site, "pv_wh", now_ns, start, by_weather, WEATHER_PV))
        if past and len(past) < 7 * _SLOTS_A_DAY:
            others = {name: dict(one) for name, one in list(self._past.items()) if name != site}
            for which, quantity in enumerate(QUANTITIES):
                table = borrowed(past, others, which, start, slots, self._model)
                if table is not None:
                    found.append(_forecast(site, quantity, now_ns, start, table, SIMILAR_SITES))
        return tuple(found)

    def _weather_pv(self, site: str, past: Mapping[int, tuple[float, float]], now_ns: int) -> Array | None:
        place = self._places(site)
        if self._weather is None or place is None:
            return None
        expected, self._weather_reasons[site] = self._weather.at(place, now_ns)
        if not expected:
            return None
        then = self._weather.past(site, now_ns - 22 * _SLOTS_A_DAY * _SLOT_NS, now_ns)
        start = now_ns - now_ns % _SLOT_NS
        return weather_pv(past, then, expected, start, self._config.horizon_s // SLOT_S, LEVELS, self._zone)

    async def _issue_side(self, now: int) -> None:
        """Price, flexibility and frequency risk: stored, and told to whoever listens."""
        found = await asyncio.to_thread(self.side.issue, now, _LOOK_AHEAD * 4)
        for owner in sorted({one.site_id for one in found}):
            await self._keep(owner, [one for one in found if one.site_id == owner], now)
        for one in found:
            try:
                await self._messenger.emit(
                    ForecastIssued(forecasts=(one,)),
                    as_agent=self.address,
                    valid_for_s=float(self._config.issue_every_s),
                )
            except WattmeshError as error:
                log.info("forecast of %s not told: %s", one.quantity, error)
                return

    async def _keep(self, owner: str, forecasts: Sequence[Forecast], now: int) -> None:
        items = [Item(partition=owner, time_ns=now, id=one.quantity, data=_data(one)) for one in forecasts]
        await asyncio.to_thread(self._store.put, Table.FORECAST_DATA, items)
        self.issued += len(forecasts)

    async def _keep_skill(self, now: int) -> None:
        """Once a day: how much better than persistence each model was over the last week, for whoever asks later."""
        if now // _SKILL_EVERY_NS == self._skill_day:
            return
        self._skill_day = now // _SKILL_EVERY_NS
        data: dict[str, JsonValue] = {"skill": self._skill(), "in_charge": self._in_charge()}
        item = Item(partition="forecasting#skill", time_ns=now, id="skill", data=data)
        await asyncio.to_thread(self._store.put, Table.FORECAST_DATA, [item])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _learned_of(self, site: str, past: Mapping[int, tuple[float, float]], now_ns: int) -> tuple[Forecast, ...]:
        """The challenger's forecasts; none while it knows too little."""
        horizon_h = -(-self._config.horizon_s // 3600)
        model = self._learned.setdefault(site, LearnedSite(self._zone, horizon_h))
        start = now_ns - now_ns % _SLOT_NS
        model.learn(past, now_ns)
        if any(self.scores[site, quantity].drifted(model.name) for quantity in QUANTITIES) and model.refit_soon(now_ns):
            self.retrained += 1
            log.info("%s: the learned model has drifted and is fitted anew", site)
        tables = model.predict(start, self._config.horizon_s // SLOT_S)
        if tables is None:
            return ()
        return tuple(_forecast(site, name, now_ns, start, table, model.name) for name, table in tables.items())

    def _chosen(self, site: str, seasonal: tuple[Forecast, ...], rivals: tuple[Forecast, ...]) -> tuple[Forecast, ...]:
        """Of each quantity the forecast of the model in charge; a quantity the seasonal model knows nothing of is left out."""
        result = []
        for forecast in seasonal:
            mine = {forecast.model: forecast}
            mine |= {one.model: one for one in rivals if one.quantity == forecast.quantity}
            self._candidates[site][forecast.quantity] = mine
            name = self.in_charge.get((site, forecast.quantity))
            if name is None and SIMILAR_SITES in mine:
                name = SIMILAR_SITES  # a site's own first days say little of its next ones
            result.append(mine.get(name or "", forecast))
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
        known = {} if model is None else model.reasons
        own = tuple(f"{quantity}: {reason}" for quantity, found in known.items() for reason in found)
        return own + self._weather_reasons.get(site, ())

    def health(self, site: str, now_ns: int) -> Health:
        """What a supervisor looks at."""
        latest, past = self.latest.get(site, {}), self._past.get(site)
        errors, means, scored, charge = {}, {}, {}, {}
        for quantity in QUANTITIES:
            scores = self.scores[site, quantity]
            losses = scores.common(scores.models())
            name = self.in_charge.get((site, quantity), self._model.name)
            count = min((len(one) for one in losses.values()), default=0)
            charge[quantity], scored[quantity] = name, count
            if count:
                means[quantity] = {model: float(np.mean(one)) for model, one in losses.items() if model != PERSISTENCE}
            own = scores.of(name)
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
            "in_charge": self._in_charge(),
            "retrained": self.retrained,
            "early": self.early,
            "weather": self._weather.snapshot() if self._weather is not None else None,
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
        sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for (_, quantity), scores in self.scores.items():
            for name in scores.models():
                both = scores.common((name, PERSISTENCE))
                sums[quantity, name][0] += sum(both[name])
                sums[quantity, name][1] += sum(both[PERSISTENCE])
        result: dict[str, JsonValue] = {
            f"{quantity} {name}": round(1 - own / peer, 3)
            for (quantity, name), (own, peer) in sorted(sums.items())
            if name != PERSISTENCE and peer > 0
        }
        return result | {f"{name} {SIDE_MODEL}": value for name, value in self.side.skill().items()}

    def _in_charge(self) -> dict[str, JsonValue]:
        return {f"{site} {quantity}": name for (site, quantity), name in sorted(self.in_charge.items())}


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
