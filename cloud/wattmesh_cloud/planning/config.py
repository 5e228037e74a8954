"""The planning section of the cloud's file."""

from __future__ import annotations

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel


class CoordinationConfig(StrictModel):
    """How a community agrees on its exchange, by rounds of messages."""

    members: tuple[str, ...] = Field(min_length=2, description="sites; each answers with nothing but its exchange")
    every_s: int = Field(default=3600, ge=900)
    horizon_s: int = Field(default=86_400, ge=7200, le=172_800)
    rounds: int = Field(default=12, ge=1, le=100)
    peak_price: float = Field(default=0.5, ge=0, description="currency per kW of the community's highest hour of a day")
    ramp_price: float = Field(default=0.02, ge=0, description="currency per kW of change between two hours")
    weight: float = Field(default=0.1, gt=0, description="currency per kW² and hour: how tightly wishes are followed")


class PlanningConfig(StrictModel):
    """Plans that the cloud makes for sites and sends them."""

    enabled: bool = True
    every_s: int = Field(default=300, ge=60, le=900)
    horizon_s: int = Field(default=172_800, ge=86_400, le=172_800)
    valid_s: int = Field(default=7200, ge=900, le=43_200, description="how long a gateway follows a plan of ours")
    efficiency: float = Field(default=0.9, gt=0, le=1, description="of a battery, round trip")
    wear_price: float = Field(default=0.01, ge=0, description="currency per kWh discharged")
    demand_price: float = Field(default=0.0, ge=0, description="currency per kW of a month's highest quarter hour")
    carbon_price: float = Field(default=0.0, ge=0, description="currency per kg of CO2")
    carbon_kg_per_kwh: tuple[float, ...] = Field(
        default=(), description="of imported energy: 24 values, one a local hour of the day; none for unknown"
    )
    reserve_up_w: float = Field(default=0.0, ge=0, description="kept by each site for under-frequency response")
    reserve_down_w: float = Field(default=0.0, ge=0, description="kept by each site for over-frequency response")
    reserve_h: float = Field(default=0.5, gt=0)
    coordination: CoordinationConfig | None = None
