"""A tariff as part of a YAML file."""

from __future__ import annotations

from datetime import time
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from wattmesh_a2a.config_file import StrictModel
from wattmesh_a2a.tariff import Tariff, TariffPeriod


def _clock_time(value: object) -> object:
    if isinstance(value, str) and value == "24:00":
        return time(0, 0)
    return value


class TariffPeriodModel(StrictModel):
    """See :class:`wattmesh_a2a.tariff.TariffPeriod`; ``from`` and ``to`` are local clock times."""

    price: float = Field(allow_inf_nan=False)
    months: tuple[Annotated[int, Field(ge=1, le=12)], ...] = tuple(range(1, 13))
    days: Literal["all", "weekday", "weekend"] = "all"
    start: time = Field(default=time(0, 0), alias="from")
    end: Annotated[time, BeforeValidator(_clock_time)] = Field(default=time(0, 0), alias="to")


class TariffModel(StrictModel):
    """See :class:`wattmesh_a2a.tariff.Tariff`."""

    feed_in_price: float = Field(allow_inf_nan=False)
    default_price: float = Field(allow_inf_nan=False)
    periods: tuple[TariffPeriodModel, ...] = ()

    def tariff(self, time_zone: str) -> Tariff:
        """The tariff in a site's time zone."""
        periods = tuple(TariffPeriod(**period.model_dump()) for period in self.periods)
        return Tariff(
            default_price=self.default_price,
            feed_in_price=self.feed_in_price,
            periods=periods,
            time_zone=time_zone,
        )
