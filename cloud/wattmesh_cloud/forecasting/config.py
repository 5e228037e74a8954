"""The forecasting section of the cloud's file."""

from __future__ import annotations

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel


class ForecastingConfig(StrictModel):
    """When and how far."""

    issue_every_s: int = Field(default=3600, ge=900)
    horizon_s: int = Field(default=172_800, ge=3600, le=604_800)
    learned: bool = True
    """Whether a learned model runs beside the seasonal one and takes charge where it is better."""
    material_change: float = Field(default=0.25, gt=0)
    """Change of the next six hours' energy, as a share, from which on a new forecast is told as an alarm."""
