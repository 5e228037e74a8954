"""Weather providers: Open-Meteo (no key), OpenWeather (a key), files, and the clear sky."""

from __future__ import annotations

import csv
import http.client
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_cloud.forecasting.config import WeatherConfig
from wattmesh_cloud.forecasting.weather import (
    HOUR_NS,
    Place,
    WeatherForecast,
    WeatherHour,
    WeatherProvider,
    clear_sky_w_m2,
    sine_of_elevation,
    split_global,
    with_irradiance,
)
from wattmesh_cloud.forecasting.weather_service import WeatherDesk
from wattmesh_cloud.store.base import Store

_TIMEOUT_S = 10.0
_ANSWER_BYTES = 2_000_000
_HOURS_AT_MOST = 24 * 16
_REFUSED = frozenset({400, 401, 403, 404, 422})
"""Answers that the same question gets again."""


class OpenMeteo:
    """https://open-meteo.com: keyless; irradiance, cloud, wind, temperature and humidity by the hour.

    Args:
        url: Of the forecast endpoint.
        days: To look ahead.
    """

    name = "open-meteo"
    _FIELDS = (
        ("temperature_2m", "temperature_c"),
        ("relative_humidity_2m", "humidity_percent"),
        ("wind_speed_10m", "wind_m_s"),
        ("cloud_cover", "cloud_percent"),
        ("shortwave_radiation", "global_w_m2"),
        ("direct_normal_irradiance", "direct_w_m2"),
        ("diffuse_radiation", "diffuse_w_m2"),
    )

    def __init__(self, url: str = "https://api.open-meteo.com/v1/forecast", days: int = 3) -> None:
        self._url, self._days = url, days

    def forecast(self, place: Place, now_ns: int) -> WeatherForecast:
        """See :class:`wattmesh_cloud.forecasting.weather.WeatherProvider`."""
        answer = fetch(
            self.name,
            self._url,
            {
                "latitude": f"{place.latitude_deg:.4f}",
                "longitude": f"{place.longitude_deg:.4f}",
                "hourly": ",".join(name for name, _ in self._FIELDS),
                "wind_speed_unit": "ms",
                "timeformat": "unixtime",
                "past_days": "1",
                "forecast_days": str(self._days),
            },
        )
        try:
            hourly = answer["hourly"]
            times = hourly["time"][:_HOURS_AT_MOST]
            columns = {ours: hourly.get(theirs) or [None] * len(times) for theirs, ours in self._FIELDS}
            # Its irradiance is the mean of the hour before the time stamp: such an hour began an hour earlier.
            behind = {"global_w_m2", "direct_w_m2", "diffuse_w_m2"}
            hours = tuple(
                WeatherHour(
                    start_ns=round(at) * NS_PER_S,
                    **{
                        name: _number(values[index + 1] if name in behind else values[index])
                        for name, values in columns.items()
                    },
                )
                for index, at in enumerate(times[:-1])
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UnavailableError(f"{self.name}: its answer is not as documented ({error!r})") from error
        return _checked(self.name, place, now_ns, hours)


class OpenWeather:
    """https://openweathermap.org, One Call 3.0: with a key; irradiance comes from its cloud cover.

    Args:
        key: File with the key; never logged, and left out of every message.
        url: Of the endpoint.
    """

    name = "openweather"

    def __init__(self, key: Path, url: str = "https://api.openweathermap.org/data/3.0/onecall") -> None:
        self._key, self._url = key, url

    def forecast(self, place: Place, now_ns: int) -> WeatherForecast:
        """See :class:`wattmesh_cloud.forecasting.weather.WeatherProvider`."""
        try:
            key = self._key.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigurationError(
                f"{self.name}: the key file {self._key} cannot be read: {error.strerror}"
            ) from error
        if not key:
            raise ConfigurationError(f"{self.name}: the key file {self._key} is empty")
        answer = fetch(
            self.name,
            self._url,
            {
                "lat": f"{place.latitude_deg:.4f}",
                "lon": f"{place.longitude_deg:.4f}",
                "exclude": "minutely,daily,alerts",
                "units": "metric",
                "appid": key,
            },
        )
        try:
            hours = tuple(
                with_irradiance(
                    place,
                    WeatherHour(
                        start_ns=round(row["dt"]) * NS_PER_S,
                        temperature_c=_number(row.get("temp")),
                        humidity_percent=_number(row.get("humidity")),
                        wind_m_s=_number(row.get("wind_speed")),
                        cloud_percent=_number(row.get("clouds")),
                    ),
                )
                for row in answer["hourly"][:_HOURS_AT_MOST]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnavailableError(f"{self.name}: its answer is not as documented ({error!r})") from error
        return _checked(self.name, place, now_ns, hours)


class WeatherFiles:
    """A CSV file: ``hour_start_utc`` and any of the fields of :class:`WeatherHour`; an empty cell is unknown.

    Args:
        path: Of the file.
        ahead_h: Hours from now on that are shown, and as many before.
    """

    name = "files"

    def __init__(self, path: Path, ahead_h: int = 72) -> None:
        self._path, self._ahead_ns = path, ahead_h * HOUR_NS
        self._hours: tuple[WeatherHour, ...] | None = None

    def forecast(self, place: Place, now_ns: int) -> WeatherForecast:
        """See :class:`wattmesh_cloud.forecasting.weather.WeatherProvider`."""
        if self._hours is None:
            self._hours = self._read()
        around = tuple(one for one in self._hours if abs(one.start_ns - now_ns) <= self._ahead_ns)
        if not around:
            raise UnavailableError(f"{self._path}: no weather of this time")
        hours = tuple(with_irradiance(place, one) for one in around)
        return WeatherForecast(place=place, issued_ns=now_ns, source=self.name, hours=hours)

    def _read(self) -> tuple[WeatherHour, ...]:
        fields = set(WeatherHour.__dataclass_fields__) - {"start_ns"}
        hours = []
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                unknown = set(reader.fieldnames or ()) - fields - {"hour_start_utc"}
                if "hour_start_utc" not in (reader.fieldnames or ()) or unknown:
                    raise ConfigurationError(
                        f"{self._path}:1: hour_start_utc is needed, and nothing is known but {', '.join(sorted(fields))}"
                    )
                for row in reader:
                    try:
                        moment = datetime.fromisoformat(row.pop("hour_start_utc"))
                        values = {name: float(text) for name, text in row.items() if name and text}
                    except (TypeError, ValueError) as error:
                        raise ConfigurationError(f"{self._path}:{reader.line_num}: not a time and numbers") from error
                    if moment.tzinfo is None or moment.timestamp() % 3600:
                        raise ConfigurationError(f"{self._path}:{reader.line_num}: a whole hour in UTC is needed")
                    hours.append(WeatherHour(start_ns=round(moment.timestamp()) * NS_PER_S, **values))
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be read: {error.strerror}") from error
        return tuple(sorted(hours, key=lambda hour: hour.start_ns))


class ClearSky:
    """No weather at all: what the sun gives when no cloud is there. Always to be had."""

    name = "clear-sky"

    def __init__(self, ahead_h: int = 72) -> None:
        self._ahead_h = ahead_h

    def forecast(self, place: Place, now_ns: int) -> WeatherForecast:
        """See :class:`wattmesh_cloud.forecasting.weather.WeatherProvider`."""
        first = now_ns - now_ns % HOUR_NS
        hours = []
        for start in range(first - 24 * HOUR_NS, first + self._ahead_h * HOUR_NS, HOUR_NS):
            level = clear_sky_w_m2(place, start)
            direct, diffuse = split_global(level, sine_of_elevation(place, start + HOUR_NS // 2))
            hours.append(WeatherHour(start_ns=start, global_w_m2=level, direct_w_m2=direct, diffuse_w_m2=diffuse))
        return WeatherForecast(place=place, issued_ns=now_ns, source=self.name, hours=tuple(hours))


def fetch(name: str, url: str, parameters: Mapping[str, str]) -> Any:
    """The JSON at an address; errors never show the parameters, among which a key may be."""
    if urllib.parse.urlsplit(url).scheme not in {"https", "http"}:
        raise ConfigurationError(f"{name}: {url} is no web address")
    request = urllib.request.Request(  # noqa: S310  # the scheme was looked at above
        f"{url}?{urllib.parse.urlencode(parameters)}", headers={"Accept": "application/json", "User-Agent": "wattmesh"}
    )
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_S) as response:
            text = response.read(_ANSWER_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _REFUSED:
            raise ConfigurationError(f"{name}: {url} refused with {error.code}: check key, plan and place") from None
        raise UnavailableError(f"{name}: {url} answered {error.code}") from None
    except (urllib.error.URLError, TimeoutError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(f"{name}: {url} cannot be reached: {reason}") from None
    if len(text) > _ANSWER_BYTES:
        raise UnavailableError(f"{name}: an answer of more than {_ANSWER_BYTES} bytes is not read")
    try:
        return json.loads(text)
    except ValueError:
        raise UnavailableError(f"{name}: {url} did not answer with JSON") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is not followed: the key would go along to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the answer stays what it is, an error."""
        return


_OPENER = urllib.request.build_opener(_NoRedirect)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _checked(name: str, place: Place, now_ns: int, hours: tuple[WeatherHour, ...]) -> WeatherForecast:
    """Refuse an answer with nothing to come; impossible values become unknown."""
    if not any(hour.start_ns > now_ns for hour in hours):
        raise UnavailableError(f"{name}: nothing of its answer is still to come")
    limits = {
        "temperature_c": (-90.0, 60.0),
        "humidity_percent": (0.0, 100.0),
        "wind_m_s": (0.0, 120.0),
        "cloud_percent": (0.0, 100.0),
        "global_w_m2": (0.0, 1600.0),
        "direct_w_m2": (0.0, 1500.0),
        "diffuse_w_m2": (0.0, 1000.0),
    }
    sound = []
    for hour in sorted(hours, key=lambda one: one.start_ns):
        values = {
            field: value
            for field, (low, high) in limits.items()
            if (value := getattr(hour, field)) is not None and low <= value <= high
        }
        sound.append(WeatherHour(start_ns=hour.start_ns, **values))
    return WeatherForecast(place=place, issued_ns=now_ns, source=name, hours=tuple(sound))


def provider_of(config: WeatherConfig) -> WeatherProvider:
    """The provider that a file asks for; nothing is fetched yet."""
    if config.provider == "open-meteo":
        return OpenMeteo(config.url) if config.url else OpenMeteo()
    if config.provider == "openweather":
        assert config.key is not None  # checked with the file
        return OpenWeather(config.key, config.url) if config.url else OpenWeather(config.key)
    if config.provider == "files":
        assert config.file is not None  # checked with the file
        return WeatherFiles(config.file)
    return ClearSky()


def desk_of(config: WeatherConfig, store: Store) -> WeatherDesk:
    """Provider, schedule and staleness as a file says."""
    return WeatherDesk(provider_of(config), store, every_s=config.every_s, stale_s=config.stale_s)


def place_of(config: WeatherConfig, site: str) -> Place:
    """Where a site is: its own place, or everybody's."""
    found = config.sites.get(site, config.place)
    return Place(latitude_deg=found.latitude, longitude_deg=found.longitude)
