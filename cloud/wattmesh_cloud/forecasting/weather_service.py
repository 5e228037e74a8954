"""The newest weather of every site: fetched on schedule, kept while it is fresh, told when it is not, stored hour by hour."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import WattmeshError

from wattmesh_cloud.forecasting.weather import HOUR_NS, Place, WeatherForecast, WeatherHour, WeatherProvider
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

log = logging.getLogger(__name__)

_PLACES_AT_MOST = 2000
_FIRST_RETRY_S, _LAST_RETRY_S = 60, 3600


class WeatherDesk:
    """See the module. A failure is asked again with growing pauses; what is too old is not given to anybody.

    Args:
        provider: Asked first.
        store: Gets each hour under ``SITE#weather``.
        every_s: How often a place is asked for.
        stale_s: Age from which on a forecast is no longer used.
    """

    def __init__(self, provider: WeatherProvider, store: Store, *, every_s: int = 3600, stale_s: int = 21_600) -> None:
        self._provider = provider
        self._store = store
        self._every_ns, self._stale_ns = every_s * NS_PER_S, stale_s * NS_PER_S
        self._known: dict[Place, WeatherForecast] = {}
        self._next: dict[Place, tuple[int, int]] = {}
        """When to ask again, and the pause in s after the next failure."""
        self._failing: dict[Place, str] = {}
        self.fetched = 0
        self.failed = 0

    async def refresh(self, sites: Mapping[str, Place], now_ns: int) -> None:
        """Ask for what is due; sites at one place share an answer."""
        for place in dict.fromkeys(list(sites.values())[:_PLACES_AT_MOST]):
            due, pause = self._next.get(place, (0, _FIRST_RETRY_S))
            if now_ns < due:
                continue
            try:
                found = await asyncio.to_thread(self._provider.forecast, place, now_ns)
            except WattmeshError as error:
                self.failed += 1
                if place not in self._failing:
                    log.warning("no weather: %s; forecasts go on without", error)
                self._failing[place] = str(error)
                self._next[place] = now_ns + pause * NS_PER_S, min(2 * pause, _LAST_RETRY_S)
                continue
            if self._failing.pop(place, None) is not None:
                log.info("weather of %s is back", self._provider.name)
            self.fetched += 1
            self._known[place] = found
            self._next[place] = now_ns + self._every_ns, _FIRST_RETRY_S
            names = [site for site, where in sites.items() if where == place]
            await asyncio.to_thread(self._keep, names, found)

    def _keep(self, sites: Iterable[str], found: WeatherForecast) -> None:
        """Coming hours with their newest expectation; an hour that is over keeps the last one that was made before it."""
        first = found.issued_ns - found.issued_ns % HOUR_NS
        for site in sites:
            items = []
            for hour in found.hours:
                if hour.start_ns < first:
                    continue
                data: dict[str, JsonValue] = {
                    name: value for name, value in asdict(hour).items() if name != "start_ns" and value is not None
                }
                data |= {"source": found.source, "issued_ns": found.issued_ns}
                items.append(Item(partition=f"{site}#weather", time_ns=hour.start_ns, id="hour", data=data))
            self._store.put(Table.FORECAST_DATA, items)

    def at(self, place: Place, now_ns: int) -> tuple[dict[int, WeatherHour], tuple[str, ...]]:
        """Hours by their start, and why there are none; an old forecast is none."""
        found = self._known.get(place)
        if found is None:
            why = self._failing.get(place)
            return {}, ("weather: not known yet" if why is None else f"weather: {why}",)
        age = now_ns - found.issued_ns
        if age > self._stale_ns:
            return {}, (f"weather: the last is {age / HOUR_NS:.0f} h old",)
        return {hour.start_ns: hour for hour in found.hours}, ()

    def past(self, site: str, start_ns: int, end_ns: int) -> dict[int, WeatherHour]:
        """What was expected of hours that are over, as it was last expected before them; blocks."""
        fields = set(WeatherHour.__dataclass_fields__) - {"start_ns"}
        items = self._store.query(Table.FORECAST_DATA, f"{site}#weather", start_ns, end_ns, limit=20_000)
        return {
            item.time_ns: WeatherHour(
                start_ns=item.time_ns,
                **{name: float(str(value)) for name, value in item.data.items() if name in fields},
            )
            for item in items
        }

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console."""
        return {
            "provider": self._provider.name,
            "fetched": self.fetched,
            "failed": self.failed,
            "failing": sorted(set(self._failing.values())),
        }
