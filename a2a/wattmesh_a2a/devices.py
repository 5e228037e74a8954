"""What a site consists of: points, readings and assets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Quality(IntEnum):
    """How far a value can be trusted; ordered, so that the worse of two is their maximum."""

    GOOD = 0
    UNCERTAIN = 1
    """Estimated, late, or outside its usual range: usable with care."""
    BAD = 2
    """Not a measurement: the value must not be used."""


class Access(StrEnum):
    """What may be done with a point."""

    READ = "r"
    WRITE = "w"
    READ_WRITE = "rw"


class AssetKind(StrEnum):
    """Kinds of assets; each is a contract of what it must measure and what it can control."""

    INVERTER = "inverter"
    BATTERY = "battery"
    METER = "meter"
    LOAD = "load"
    EV_CHARGER = "ev_charger"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured or settable quantity of an asset."""

    id: str
    """Name with its unit, unique within the asset, for example ``active_power_w``."""
    quantity: str
    """What is measured, without the unit, for example ``active_power``."""
    unit: str
    """SI unit, ``percent`` or empty."""
    access: Access = Access.READ
    minimum: float | None = None
    """Smallest plausible (read) or allowed (write) value; none where unlimited."""
    maximum: float | None = None
    """Largest plausible (read) or allowed (write) value; none where unlimited."""
    resolution: float | None = None
    """Step of the value as the device gives it; none where unknown or floating point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One value of one point at one time."""

    asset_id: str
    point_id: str
    value: float | None
    """Value in the point's unit; none means no data and never 0."""
    quality: Quality
    source_time_ns: int
    """UTC time at which the value was true."""
    received_time_ns: int
    """UTC time at which the gateway had it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A device or a part of one that measures, produces, stores or consumes."""

    id: str
    """Name, unique within the site."""
    kind: AssetKind
    points: tuple[Point, ...] = ()
    rated_power_w: float | None = None
    """Largest active power in either direction."""
    rated_energy_wh: float | None = None
    """Usable energy of a storage."""
