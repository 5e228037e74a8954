"""The forecasting agent: load and PV of every site, each hour, stored with their issue time and told to the sites."""

from __future__ import annotations

import asyncio
import csv
import logging
from collections import defaultdict, deque
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import message_from_json
from wattmesh_a2a.envelope import CLOUD_UNIT, FORECAST_AGENT, GATEWAY_AGENT, Address
from wattmesh_a2a.errors import ConfigurationError, WattmeshError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.messages import ForecastIssued, IntervalEnergy, Message
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.forecasting.config import ForecastingConfig
from wattmesh_cloud.forecasting.model import LEVELS, Model, SeasonalQuantiles
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

log = logging.getLogger(__name__)

SLOT_S = 900
_SLOT_NS = SLOT_S * NS_PER_S
_SLOTS_A_DAY = 86_400 // SLOT_S
_HISTORY_SLOTS = 30 * _SLOTS_A_DAY
_SCORES = 2000
QUANTITIES = ("load_wh", "pv_wh")


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
        model: Makes the forecasts.
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
    ) -> None:
        del state
        self._config = config
        self._store = store
        self._messenger = messenger
        self._clock = clock
        self._org = org
        self._model = model or SeasonalQuantiles()
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
            forecast = self.latest.get(site, {}).get(quantity)
            median = median_of(forecast, message.slot_start_ns) if forecast is not None else None
            if median is not None:
                self._errors[quantity].append(abs(actual - median))

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
                now - _HISTORY_SLOTS * _SLOT_NS,
                now + _SLOT_NS,
                limit=100_000,
            )
            for item in items:
                if item.id == "interval":
                    self.on_record(partition, message_from_json("wattmesh.metering.interval.v1", dict(item.data)))

    async def _issue(self) -> None:
        now = self._clock.utc_ns()
        for site in sorted(self._past):
            self._forget(site, now)
            past = dict(self._past[site])  # a copy: records arrive on the loop while the thread computes
            forecasts = await asyncio.to_thread(self._forecasts_of, site, past, now)
            if not forecasts:
                continue
            self.latest[site] = {forecast.quantity: forecast for forecast in forecasts}
            items = [
                Item(partition=site, time_ns=now, id=forecast.quantity, data=_data(forecast)) for forecast in forecasts
            ]
            await asyncio.to_thread(self._store.put, Table.FORECAST_DATA, items)
            self.issued += len(forecasts)
            task = asyncio.get_running_loop().create_task(self._send(site, ForecastIssued(forecasts=forecasts)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

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
            forecasts.append(
                Forecast(
                    site_id=site,
                    quantity=quantity,
                    issued_ns=now_ns,
                    start_ns=start,
                    slot_s=SLOT_S,
                    levels=LEVELS,
                    values=tuple(tuple(round(float(value), 1) for value in row) for row in table),
                    model=self._model.name,
                )
            )
        return tuple(forecasts)

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console."""
        errors: dict[str, JsonValue] = {
            name: round(float(np.mean(values)), 1) for name, values in self._errors.items() if values
        }
        return {"issued": self.issued, "sites": sorted(self.latest), "model": self._model.name, "mean_error_wh": errors}


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
