"""What an agent decides on: frozen figures and, apart from them, text of others that is data and never an instruction.

Powers in watts with the passive sign, energies in watt-hours a slot of 15 min, prices in ticks of 0.01 ct/kWh, time in UTC
nanoseconds. ``None`` means not known.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wattmesh_cloud.agents.learning import PARAMETERS

SLOT_NS = 900 * 1_000_000_000
SLOTS_A_DAY = 96


def default_settings() -> dict[str, float]:
    """Every learned parameter at the value that it begins with."""
    return {name: one.default for name, one in PARAMETERS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Text from outside (an alarm, a weather report, a message): shown to people and models as a quotation."""

    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategies:
    """The strategy that a site has now."""

    reserve_soc_percent: float = 5.0
    peak_limit_w: float | None = None
    trade: bool = True
    expires_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSituation:
    """One site, for its producer and its consumer agent."""

    site_id: str
    now_ns: int
    import_limit_w: float
    """Of the connection."""
    net_wh: tuple[int, ...] = ()
    """Metered load less PV of the last quarter hours, oldest first, without the battery."""
    expected_net_wh: tuple[float, ...] = ()
    """Forecast load less PV of the coming quarter hours (medians)."""
    expected_pv_wh: tuple[float, ...] = ()
    forecast_age_s: float | None = None
    forecast_error: float | None = None
    """Mean absolute error of the forecast of the last day over the mean absolute net load."""
    online: bool = True
    missing: tuple[str, ...] = ()
    """Assets that give no values now."""
    battery_wh: float | None = None
    """Of all batteries; none where the site's announcement is not known, 0 without batteries."""
    soc_percent: float | None = None
    import_ticks: tuple[int, ...] = ()
    """Retail prices of the coming quarter hours."""
    feed_in_ticks: int = 0
    committed_wh: int = 0
    """Energy that it bought and sold in the last day, magnitudes added up."""
    missed_wh: int = 0
    """Distance between committed and metered energy of the same slots, added up."""
    gain_units: int = 0
    """What its trades of the last day brought against the retailer's prices, in tick · Wh."""
    miss_cost_units: int = 0
    """What was lost on the distance, in tick · Wh."""
    grid_status: str = "normal"
    in_force: Strategies | None = None
    settings: Mapping[str, float] = field(default_factory=default_settings)
    """Learned parameters, inside their bounds (:mod:`wattmesh_cloud.agents.learning`)."""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What a participant did in the market in the last day."""

    orders: int = 0
    cancelled: int = 0
    bought_wh: int = 0
    sold_wh: int = 0
    exposure_share: float = 0.0
    """Open orders and debts over its credit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSituation:
    """One market area, for the market supervisor."""

    area: str
    now_ns: int
    halts: Mapping[str, str] = field(default_factory=dict)
    """Cause → reason; empty while orders are taken."""
    prices_ticks: tuple[int, ...] = ()
    """Of the cleared slots of the last day, oldest first."""
    feed_in_ticks: int = 0
    retail_ticks: int = 0
    forecast_age_s: float | None = None
    grid_status: str = "normal"
    participants: Mapping[str, Activity] = field(default_factory=dict)
    suspended: Mapping[str, str] = field(default_factory=dict)
    slots_unsettled: int = 0
    """Slots that are over for longer than settlement waits for a meter, and not settled."""
    ledger_sum_units: int = 0
    """Has to be 0."""
    settings: Mapping[str, float] = field(default_factory=default_settings)
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownEvent:
    """A demand-response event that is announced, under way or over since yesterday."""

    id: str
    start_ns: int
    end_ns: int
    target_w: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSituation:
    """The fleet as a part of the grid, for the grid optimisation agent."""

    now_ns: int
    nominal_hz: float = 60.0
    status: str = "normal"
    frequency_hz: Mapping[str, float] = field(default_factory=dict)
    """By site, as last reported."""
    quiet_s: float | None = None
    """Since the last frequency event; none where there was none."""
    start_ns: int = 0
    """Of the first expected slot."""
    expected_w: tuple[float, ...] = ()
    """Fleet's mean net load of the coming quarter hours."""
    usual_peak_w: float | None = None
    """95th percentile of the fleet's metered net load; none with less than a day known."""
    forecast_age_s: float | None = None
    sites: int = 0
    online: int = 0
    events: tuple[KnownEvent, ...] = ()
    delivered_share: float | None = None
    """Delivered over dispatched energy of past events."""
    response_enabled: bool = True
    notice_s: int = 3600
    duration_s: int = 3600
    price_ticks: int = 3000
    """The operator's price; an event never pays more."""
    share: float = 0.3
    percentile: float = 90.0
    settings: Mapping[str, float] = field(default_factory=default_settings)
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastSituation:
    """One site's forecasts, for the forecasting agent."""

    site_id: str
    now_ns: int
    issued_age_s: float | None = None
    """None where there is no forecast."""
    reading_age_s: float | None = None
    """Since the end of the last metered quarter hour; none where nothing is known."""
    error_wh: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Quantity → mean pinball loss of the forecast in charge over the last day, and over the week."""
    losses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Quantity → model → mean pinball loss over the slots that all have forecast."""
    scored_slots: Mapping[str, int] = field(default_factory=dict)
    in_charge: Mapping[str, str] = field(default_factory=dict)
    widened: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Quantity → why its quantiles are wider (missing, impossible or frozen readings)."""
    changed: Mapping[str, float] = field(default_factory=dict)
    """Quantity → relative change of the next hours where it was material."""
    retrained_s: float | None = None
    settings: Mapping[str, float] = field(default_factory=default_settings)
    notes: tuple[Note, ...] = ()


Situation = SiteSituation | MarketSituation | GridSituation | ForecastSituation


def subject_of(situation: Situation) -> str:
    """What a situation is about: a site, a market area, or ``fleet``."""
    match situation:
        case SiteSituation() | ForecastSituation():
            return situation.site_id
        case MarketSituation():
            return situation.area
        case GridSituation():
            return "fleet"


def plain(value: Any) -> Any:
    """A situation or a part of one as JSON values."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        if value and type(value[0]) in (int, float):  # long rows of figures are most of a situation
            return list(value)
        return [plain(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def restored(kind: Any, value: Any) -> Any:
    """A situation, or a part of one, from its plain values (:func:`plain`); a row may be ``{repeat: [[count, value], …]}``.

    Raises:
        ValueError: Values that are not of the type.
    """
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(f"no field {', '.join(sorted(unknown))}")
        return kind(**{name: restored(hints[name], one) for name, one in value.items()})  # type: ignore[operator]
    if origin is tuple:
        item, *others = typing.get_args(kind)
        if isinstance(value, Mapping):
            value = [one for count, one in value["repeat"] for _ in range(count)]
        kinds = [item] * len(value) if others in ([Ellipsis], []) else [item, *others]
        return tuple(restored(each, one) for each, one in zip(kinds, value, strict=True))
    if origin is not None and isinstance(value, Mapping):
        return {key: restored(typing.get_args(kind)[1], one) for key, one in value.items()}
    if origin in (typing.Union, types.UnionType) and value is not None:
        return restored(next(one for one in typing.get_args(kind) if one is not types.NoneType), value)
    if kind is float and isinstance(value, int):
        return float(value)
    if value is not None and kind in (int, float, str, bool) and not isinstance(value, kind):
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value
