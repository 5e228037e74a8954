"""What a photovoltaic plant gives under a clear sky: geometry and two textbook formulas, to compare a plant with physics."""

from __future__ import annotations

import math
from dataclasses import dataclass

_DAY_NS = 86_400_000_000_000
_PER_KELVIN = 0.004
"""Loss of power a kelvin of the cell above 25 °C, of crystalline silicon."""
_HEATING_K = 28.0
"""Of a cell above the air at 1000 W/m² (NOCT of 45 °C at 800 W/m² and 20 °C, slightly ventilated)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """Where a plant stands and where it looks."""

    latitude_deg: float
    longitude_deg: float
    tilt_deg: float = 30.0
    azimuth_deg: float = 180.0
    """Clockwise from north; 180 is south."""


def clear_sky_share(plane: Plane, utc_ns: int) -> float:
    """Power under a clear sky as a share of the rated power; 0 while the sun is low.

    Sun: declination and equation of time after Spencer (1971). Irradiance: global after Haurwitz (1945), 15 % of it diffuse, the
    rest turned into the plane. Cells: 28 K above the air at 1000 W/m², the air by a sinusoid of the year.
    """
    days = utc_ns / _DAY_NS
    year = 2 * math.pi * (days % 365.2425) / 365.2425
    declination = (
        0.006918 - 0.399912 * math.cos(year) + 0.070257 * math.sin(year) - 0.006758 * math.cos(2 * year)
        + 0.000907 * math.sin(2 * year)
    )  # fmt: skip
    minutes = 229.18 * (
        0.000075 + 0.001868 * math.cos(year) - 0.032077 * math.sin(year) - 0.014615 * math.cos(2 * year)
        - 0.040849 * math.sin(2 * year)
    )  # fmt: skip
    hour = (days % 1 * 1440 + minutes + 4 * plane.longitude_deg) / 60 - 12
    angle = math.radians(15 * hour)
    latitude = math.radians(plane.latitude_deg)
    height = math.sin(latitude) * math.sin(declination) + math.cos(latitude) * math.cos(declination) * math.cos(angle)
    if height <= 0.1:
        return 0.0
    east = -math.cos(declination) * math.sin(angle)
    north = math.cos(latitude) * math.sin(declination) - math.sin(latitude) * math.cos(declination) * math.cos(angle)
    tilt, azimuth = math.radians(plane.tilt_deg), math.radians(plane.azimuth_deg)
    facing = height * math.cos(tilt) + math.sin(tilt) * (north * math.cos(azimuth) + east * math.sin(azimuth))
    level = 1098 * height * math.exp(-0.057 / height)
    on_plane = level * (0.85 * max(0.0, facing) / height + 0.15 * (1 + math.cos(tilt)) / 2)
    season = -math.cos(year - 0.35) * (1 if plane.latitude_deg >= 0 else -1)
    air = 25 - 0.25 * abs(plane.latitude_deg) + 0.22 * abs(plane.latitude_deg) * season
    cell = air + _HEATING_K * on_plane / 1000
    return max(0.0, on_plane / 1000 * (1 - _PER_KELVIN * (cell - 25)))
