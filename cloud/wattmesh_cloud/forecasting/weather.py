"""Weather as forecasts use it: what a provider gives, the clear sky, and irradiance from cloud cover."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

HOUR_NS = 3_600_000_000_000
_DAY_NS = 24 * HOUR_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the weather is wanted."""

    latitude_deg: float
    longitude_deg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeatherHour:
    """Means of one hour; none for what a provider does not say."""

    start_ns: int
    """UTC."""
    temperature_c: float | None = None
    humidity_percent: float | None = None
    wind_m_s: float | None = None
    cloud_percent: float | None = None
    global_w_m2: float | None = None
    """Irradiance on the horizontal."""
    direct_w_m2: float | None = None
    """On a plane that faces the sun."""
    diffuse_w_m2: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeatherForecast:
    """What a provider expects at a place."""

    place: Place
    issued_ns: int
    """UTC at which it was fetched, or made."""
    source: str
    hours: tuple[WeatherHour, ...]
    """In order; past hours may be among them."""


class WeatherProvider(Protocol):
    """Where weather comes from. Called on a thread; may block as long as its own time-out says."""

    name: str

    def forecast(self, place: Place, now_ns: int) -> WeatherForecast:
        """The newest forecast.

        Raises:
            UnavailableError: It cannot be had now; asking again can help.
            ConfigurationError: It will not be had: the key is refused, the file is missing.
        """
        ...


def sine_of_elevation(place: Place, utc_ns: int) -> float:
    """Of the sun; below 0 at night. Declination and equation of time after Spencer (1971)."""
    days = utc_ns / _DAY_NS
    year = 2 * math.pi * (days % 365.2425) / 365.2425
    declination = (
        0.006918 - 0.399912 * math.cos(year) + 0.070257 * math.sin(year) - 0.006758 * math.cos(2 * year)
        + 0.000907 * math.sin(2 * year) - 0.002697 * math.cos(3 * year) + 0.00148 * math.sin(3 * year)
    )  # fmt: skip
    minutes = 229.18 * (
        0.000075 + 0.001868 * math.cos(year) - 0.032077 * math.sin(year) - 0.014615 * math.cos(2 * year)
        - 0.040849 * math.sin(2 * year)
    )  # fmt: skip
    hour = (days % 1 * 1440 + minutes + 4 * place.longitude_deg) / 60 - 12
    latitude, angle = math.radians(place.latitude_deg), math.radians(15 * hour)
    return math.sin(latitude) * math.sin(declination) + math.cos(latitude) * math.cos(declination) * math.cos(angle)


def clear_sky_w_m2(place: Place, start_ns: int) -> float:
    """Global irradiance of an hour under a clear sky (Haurwitz 1945), the mean of six moments of it."""
    total = 0.0
    for part in range(6):
        height = sine_of_elevation(place, start_ns + (2 * part + 1) * HOUR_NS // 12)
        total += 1098 * height * math.exp(-0.057 / height) if height > 0 else 0.0
    return total / 6


def clouded_w_m2(clear_w_m2: float, cloud_percent: float) -> float:
    """Global irradiance below clouds (Kasten and Czeplak 1980, doi 10.1016/0038-092X(80)90391-6)."""
    covered = min(max(cloud_percent, 0.0), 100.0) / 100
    return clear_w_m2 * (1 - 0.75 * math.pow(covered, 3.4))


def split_global(global_w_m2: float, height: float) -> tuple[float, float]:
    """Direct (facing the sun) and diffuse irradiance of a global one (Erbs et al. 1982), ``height`` the sine of the elevation."""
    if height <= 0.05 or global_w_m2 <= 0:
        return 0.0, max(0.0, global_w_m2)
    clearness = min(1.0, global_w_m2 / (1361 * height))
    if clearness <= 0.22:
        share = 1 - 0.09 * clearness
    elif clearness <= 0.8:
        share = 0.9511 - 0.1604 * clearness + 4.388 * clearness**2 - 16.638 * clearness**3 + 12.336 * clearness**4
    else:
        share = 0.165
    return (1 - share) * global_w_m2 / height, share * global_w_m2


def with_irradiance(place: Place, hour: WeatherHour) -> WeatherHour:
    """The hour with irradiance from its cloud cover where the provider has none; without cloud cover as it is."""
    if hour.global_w_m2 is not None or hour.cloud_percent is None:
        return hour
    level = clouded_w_m2(clear_sky_w_m2(place, hour.start_ns), hour.cloud_percent)
    direct, diffuse = split_global(level, sine_of_elevation(place, hour.start_ns + HOUR_NS // 2))
    return WeatherHour(
        start_ns=hour.start_ns,
        temperature_c=hour.temperature_c,
        humidity_percent=hour.humidity_percent,
        wind_m_s=hour.wind_m_s,
        cloud_percent=hour.cloud_percent,
        global_w_m2=level,
        direct_w_m2=direct,
        diffuse_w_m2=diffuse,
    )
