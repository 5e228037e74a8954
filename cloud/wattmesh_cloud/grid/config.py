"""The grid section of the cloud's file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel


class DemandResponseConfig(StrictModel):
    """When less import is asked for, and what is paid."""

    enabled: bool = True
    peak_percentile: float = Field(
        default=90, ge=50, le=100, description="of the day's forecast: what counts as a peak"
    )
    price: float = Field(default=0.30, ge=0, description="currency per delivered kWh")
    notice_s: int = Field(default=3600, ge=900)
    duration_s: int = Field(default=3600, ge=900, le=14_400)
    share: float = Field(default=0.3, gt=0, le=1, description="of the expected import that is asked for")


class GridConfig(StrictModel):
    """The grid as this operator sees it."""

    nominal_hz: Literal[50, 60] = 60
    demand_response: DemandResponseConfig = DemandResponseConfig()
