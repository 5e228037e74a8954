"""The forecasting section of the cloud's file."""

from __future__ import annotations

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel


class ForecastingConfig(StrictModel):
    """When and how far."""

    issue_every_s: int = Field(default=3600, ge=900)
    horizon_s: int = Field(default=172_800, ge=3600, le=604_800)
