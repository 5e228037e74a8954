"""Retail tariffs: the price of imported energy by season, weekday and time of day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.market import TICKS_PER_CURRENCY_UNIT_PER_KWH

NS_PER_S = 1_000_000_000


def price_ticks(price_per_kwh: float) -> int:
    """A price in the currency's unit per kWh as ticks of 0.01 ct/kWh (0.0001 a kWh)."""
    return round(price_per_kwh * TICKS_PER_CURRENCY_UNIT_PER_KWH)


def slot_start_ns(utc_ns: int, slot_s: int) -> int:
    """Start of the delivery slot that contains ``utc_ns``; slots are aligned to UTC."""
    return utc_ns - utc_ns % (slot_s * NS_PER_S)


def local_time(utc_ns: int, zone: tzinfo) -> datetime:
    """The clock on the wall of a site at ``utc_ns``."""
    return datetime.fromtimestamp(utc_ns // NS_PER_S, tz=UTC).astimezone(zone)


@dataclass(frozen=True, slots=True, kw_only=True)
class TariffPeriod:
    """When a price holds; what is left out does not restrict."""

    price: float
    """Currency per kWh."""
    months: tuple[int, ...] = tuple(range(1, 13))
    days: Literal["all", "weekday", "weekend"] = "all"
    start: time = time(0, 0)
    """Local time, inclusive."""
    end: time = time(0, 0)
    """Local time, exclusive; midnight means the end of the day."""

    def holds(self, local: datetime) -> bool:
        """Whether this period contains the local time."""
        if local.month not in self.months:
            return False
        if self.days != "all" and (local.weekday() >= 5) != (self.days == "weekend"):
            return False
        now = local.time()
        if self.end == time(0, 0):
            return now >= self.start
        if self.start <= self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """What the retailer takes and gives."""

    default_price: float
    """Currency per imported kWh where no period fits."""
    feed_in_price: float
    """Currency per exported kWh."""
    periods: tuple[TariffPeriod, ...] = ()
    """The first that holds counts."""
    time_zone: str = "UTC"

    def zone(self) -> ZoneInfo:
        """The zone; raises :class:`ConfigurationError` when the machine does not know it."""
        try:
            return ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ConfigurationError(f"time zone {self.time_zone!r} is unknown; use an IANA name") from error

    def import_price_ticks(self, utc_ns: int) -> int:
        """Price of energy imported at ``utc_ns``, in ticks of 0.01 ct/kWh."""
        local = local_time(utc_ns, self.zone())
        for period in self.periods:
            if period.holds(local):
                return price_ticks(period.price)
        return price_ticks(self.default_price)

    def feed_in_ticks(self) -> int:
        """Price of exported energy, in ticks of 0.01 ct/kWh."""
        return price_ticks(self.feed_in_price)
