"""PV from the weather forecast: what the site's plant made of the same expected irradiance at the same hour of the day.

One ratio an hour of the day (least squares through 0 over three weeks, the nearer days weighing more) holds tilt, azimuth, shading
and the provider's own bias; quantiles come from what the ratio missed. It is one candidate more beside the models that know no
weather forecast, scored as they are, in charge only where it is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import tzinfo

import numpy as np
from wattmesh_a2a.tariff import local_time

from wattmesh_cloud.forecasting.learned import HOUR_NS, SLOT_NS, quarters
from wattmesh_cloud.forecasting.regression import Array, weighted_quantiles
from wattmesh_cloud.forecasting.weather import WeatherHour

NAME = "weather-pv"
_DAYS = 21
_HALF_LIFE_DAYS = 10.0
_LEAST_W_M2 = 20.0
_LEAST_HOURS = 5
_NEIGHBOURS = 1


def weather_pv(
    past: Mapping[int, tuple[float, float]],
    expected_then: Mapping[int, WeatherHour],
    expected_now: Mapping[int, WeatherHour],
    start_ns: int,
    slots: int,
    levels: Sequence[float],
    zone: tzinfo,
) -> Array | None:
    """Quantiles (``slots`` × levels) of PV, Wh a quarter hour; none where too little of either is known.

    Args:
        past: Start of a quarter hour → load and PV, Wh.
        expected_then: Weather of hours that are over, as it was expected before them.
        expected_now: Weather of the coming hours.
        start_ns: First slot.
        slots: How many.
        levels: Quantile levels, ascending.
        zone: Of the site's clock.
    """
    first = start_ns - start_ns % HOUR_NS
    rows = []
    for hour_ns, weather in expected_then.items():
        parts = [past.get(hour_ns + step * SLOT_NS) for step in range(4)]
        known = [one[1] for one in parts if one is not None]
        if first - _DAYS * 24 * HOUR_NS <= hour_ns < first and len(known) == 4 and weather.global_w_m2 is not None:
            rows.append((hour_ns, weather.global_w_m2, sum(known)))
    bright = [row for row in rows if row[1] >= _LEAST_W_M2]
    if len(bright) < 24:
        return None
    age_days = np.array([(first - hour_ns) / 24 / HOUR_NS for hour_ns, _, _ in bright])
    light, made = np.array([row[1] for row in bright]), np.array([row[2] for row in bright])
    hours = np.array([local_time(hour_ns, zone).hour for hour_ns, _, _ in bright])
    weights = 0.5 ** (age_days / _HALF_LIFE_DAYS)
    count = -(-(slots * SLOT_NS + start_ns - first) // HOUR_NS)
    table = np.zeros((count, len(levels)))
    for index in range(count):
        coming = expected_now.get(first + index * HOUR_NS)
        if coming is None or coming.global_w_m2 is None:
            return None
        if coming.global_w_m2 < _LEAST_W_M2 / 4:
            continue  # night by the sun's own geometry
        hour = local_time(first + index * HOUR_NS, zone).hour
        apart = np.minimum((hours - hour) % 24, (hour - hours) % 24)
        near = apart <= _NEIGHBOURS
        if near.sum() < _LEAST_HOURS:
            return None
        weight = weights[near] * np.where(apart[near] == 0, 1.0, 0.3)
        ratio = float((weight * light[near] * made[near]).sum() / (weight * light[near] ** 2).sum())
        missed = made[near] / np.maximum(light[near], _LEAST_W_M2) - ratio
        table[index] = np.maximum(ratio + weighted_quantiles(missed, weight, levels), 0.0) * coming.global_w_m2
    skip = (start_ns - first) // SLOT_NS
    return quarters(table)[skip : skip + slots]
