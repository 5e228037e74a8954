"""The forecasting section of the cloud's file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from wattmesh_a2a.config_file import StrictModel


class PlaceModel(StrictModel):
    """Where a site is."""

    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-180, le=180)


class WeatherConfig(StrictModel):
    """Where weather comes from; ``clear-sky`` and ``files`` work without a network."""

    provider: Literal["open-meteo", "openweather", "files", "clear-sky"]
    place: PlaceModel
    """Of all sites that are not named below."""
    sites: dict[str, PlaceModel] = {}
    url: str | None = Field(default=None, pattern=r"^https?://", description="of the provider, where it is not its own")
    key: Path | None = Field(default=None, description="openweather: file with the key")
    file: Path | None = Field(default=None, description="files: CSV with hour_start_utc and the known fields")
    every_s: int = Field(default=3600, ge=600)
    stale_s: int = Field(default=21_600, ge=3600)

    @model_validator(mode="after")
    def _complete(self) -> WeatherConfig:
        if self.provider == "openweather" and self.key is None:
            raise ValueError("openweather needs key: a file with the key")
        if self.provider == "files" and self.file is None:
            raise ValueError("files needs file: a CSV file with weather")
        return self


class ForecastingConfig(StrictModel):
    """When and how far."""

    issue_every_s: int = Field(default=3600, ge=900)
    horizon_s: int = Field(default=172_800, ge=3600, le=604_800)
    learned: bool = True
    """Whether a learned model runs beside the seasonal one and takes charge where it is better."""
    material_change: float = Field(default=0.25, gt=0)
    """Change of the next six hours' energy, as a share, from which on a new forecast is told as an alarm."""
    weather: WeatherConfig | None = None
    """None: forecasts are made of what was metered alone."""
