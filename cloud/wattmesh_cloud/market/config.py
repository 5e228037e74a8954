"""The market's section of the cloud's file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from wattmesh_a2a.config_file import StrictModel
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.tariff_file import TariffModel


class ParticipantModel(StrictModel):
    """A site that may trade; limits are positive magnitudes."""

    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    import_limit_w: float = Field(gt=0, le=1e11)
    export_limit_w: float = Field(ge=0, le=1e11)
    credit_limit: float = Field(gt=0, le=1e15, description="currency: the most its open orders and trades may cost")
    orders_per_s: float = Field(
        default=50.0, gt=0, le=1e6, description="sustained; four seconds' worth may come at once"
    )
    orders_a_slot: int = Field(default=1000, gt=0, description="accepted in one product, also when they were cancelled")
    owner: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="who stands behind it: one owner never trades with itself",
    )
    telemetry_max_age_s: int | None = Field(
        default=None, gt=0, description="take offers only with telemetry this young that says the site can deliver"
    )


class MarketConfig(StrictModel):
    """One market area."""

    area: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    currency: str = "EUR"
    time_zone: str = "UTC"
    slot_s: int = Field(default=900, ge=300, le=3600)
    gate_open_s: int = Field(default=21_600, gt=0)
    gate_close_s: int = Field(default=300, ge=0)
    price_band: float = Field(default=10.0, gt=0, le=800, description="currency per kWh: orders beyond ± are refused")
    substitute_after_s: int = Field(default=7200, ge=0, description="how long settlement waits for a meter")
    mechanism: Literal["call", "continuous", "continuous+call", "pay-as-bid"] = "call"
    call_s: int = Field(default=300, gt=0, description="how long orders are collected before the closing auction")
    self_trade: Literal["cancel_newest", "cancel_oldest", "cancel_both"] = "cancel_newest"
    grid_fee: float = Field(default=0.0, ge=0, description="currency per kWh bought locally, to the grid operator")
    levy: float = Field(default=0.0, ge=0, description="currency per kWh bought locally")
    imbalance_fee: float = Field(default=0.0, ge=0, description="currency per kWh between metered and committed")
    halt_move: float | None = Field(
        default=None, gt=0, description="currency per kWh within halt_window_s: halts a product"
    )
    halt_window_s: int = Field(default=300, gt=0)
    halt_in_grid_emergency: bool = Field(
        default=False, description="take no orders while the grid agent sees an emergency"
    )
    halt_without_forecast_s: int | None = Field(default=None, gt=0, description="halt when no forecast is this young")
    halt_s: int = Field(default=120, gt=0)
    keep_days: int = Field(
        default=31,
        ge=22,
        description="then a slot is archived: 14 days for late readings and 7 more as substitutes' history",
    )
    tariff: TariffModel
    participants: tuple[ParticipantModel, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> MarketConfig:
        if self.gate_open_s <= self.gate_close_s:
            raise ValueError("gate_open_s must be larger than gate_close_s")
        if self.mechanism == "continuous+call" and self.call_s >= self.gate_open_s - self.gate_close_s:
            raise ValueError("call_s leaves no time for continuous trading")
        if 86_400 % self.slot_s:
            raise ValueError("slot_s has to divide a day (300, 900, 1800, 3600)")
        names = [participant.id for participant in self.participants]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"participant {name!r} stands twice")
        return self


class LinkModel(StrictModel):
    """A line between two areas: energy flows to the dearer one at gate closure, within the limit."""

    areas: tuple[str, str]
    limit_w: float = Field(gt=0, le=1e11, description="either way")

    @property
    def name(self) -> str:
        """Of its account."""
        return "-".join(self.areas)


def check_links(links: Sequence[LinkModel], configs: Sequence[MarketConfig]) -> None:
    """Raises :class:`ConfigurationError` where a line cannot couple its areas."""
    by_name, seen = {config.area: config for config in configs}, set[str]()
    for link in links:
        for name in link.areas:
            if name not in by_name:
                raise ConfigurationError(f"no market area {name!r}; there are: {', '.join(sorted(by_name))}")
            if name in seen:
                raise ConfigurationError(
                    f"area {name!r} has two lines; one an area: flows through an area are not computed"
                )
            seen.add(name)
            if by_name[name].mechanism not in {"call", "continuous+call"}:
                raise ConfigurationError(
                    f"area {name!r} closes without a uniform-price auction, in which a line could take part"
                )
        one, other = (by_name[name] for name in link.areas)
        for field in ("slot_s", "gate_close_s", "currency"):
            if getattr(one, field) != getattr(other, field):
                raise ConfigurationError(f"a line needs the same {field} in {one.area!r} and {other.area!r}")


def check_areas(configs: Sequence[MarketConfig]) -> None:
    """Raises :class:`ConfigurationError` when two areas share a name or a participant."""
    seen: dict[str, str] = {}
    names: set[str] = set()
    for config in configs:
        if config.area in names:
            raise ConfigurationError(f"market area {config.area!r} stands twice; each has its own journal and writer")
        names.add(config.area)
        for one in config.participants:
            if one.id in seen:
                raise ConfigurationError(
                    f"participant {one.id!r} stands in the areas {seen[one.id]!r} and {config.area!r}; a site trades in one"
                )
            seen[one.id] = config.area
