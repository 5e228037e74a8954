"""The grid section of the cloud's file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from wattmesh_a2a.config_file import StrictModel

NAME = r"^[A-Za-z0-9_.-]{1,64}$"


class LimitsConfig(StrictModel):
    """How often a site may be called: fatigue, and fairness."""

    events_per_day: int = Field(default=2, ge=1)
    events_per_week: int = Field(default=5, ge=1)
    hours_per_month: float = Field(default=20.0, gt=0)
    rest_s: int = Field(default=7200, ge=0, description="between the end of one event and the start of the next")
    site_share: float = Field(default=1.0, gt=0, le=1, description="of an event's target: the most that one site gives")
    fair_band: float = Field(
        default=0.01,
        ge=0,
        description="currency per kWh: prices so near count as equal, and the least called comes first",
    )


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
    tolerance: float = Field(
        default=0.10, gt=0, le=0.5, description="of the dispatch: beyond it the event is dispatched anew"
    )
    redispatch_s: int = Field(default=300, ge=60, description="how often a running event is looked at")
    control_share: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="of the sites that are willing: drawn by chance and not called, to compare with",
    )
    baseline: Literal["high-5-of-10", "offered"] = "high-5-of-10"
    limits: LimitsConfig = LimitsConfig()


class LineConfig(StrictModel):
    """One line of a feeder, three-phase."""

    start: str = Field(alias="from", pattern=NAME)
    end: str = Field(alias="to", pattern=NAME)
    r_ohm: float = Field(ge=0)
    x_ohm: float = Field(ge=0)
    limit_a: float = Field(gt=0)


class AreaConfig(StrictModel):
    """A part of the grid: its sites and, where it is known, its feeder."""

    id: str = Field(pattern=NAME)
    sites: dict[str, str] = Field(
        min_length=1, description="site: node of the feeder (transformer, where there are no lines)"
    )
    rated_w: float = Field(gt=0, description="of the transformer or the connection that all of them share")
    nominal_v: float = Field(default=400.0, gt=0, description="line to line")
    voltage_band: float = Field(default=0.10, gt=0, lt=0.5, description="EN 50160: 10 %")
    power_factor: float = Field(default=0.98, gt=0, le=1, description="of loads, lagging; production is taken at 1")
    lines: tuple[LineConfig, ...] = ()
    grid_forming: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="sites that can start an island by themselves: W of their grid-forming inverters"
    )
    critical: tuple[str, ...] = Field(default=(), description="sites that are shed last and come back first")

    @model_validator(mode="after")
    def _consistent(self) -> AreaConfig:
        nodes = {line.end for line in self.lines} | {"transformer"}
        for site, node in self.sites.items():
            if node not in nodes:
                raise ValueError(
                    f"site {site} hangs on {node!r}, which no line reaches; there are: {', '.join(sorted(nodes))}"
                )
        for name in (*self.grid_forming, *self.critical):
            if name not in self.sites:
                raise ValueError(f"{name!r} is none of the area's sites")
        return self


class StageConfig(StrictModel):
    """One stage of an emergency."""

    id: int = Field(ge=1, le=9)
    name: str = Field(min_length=1, max_length=60)
    shed: float = Field(default=0.0, ge=0, le=1, description="share of the import that is taken away")
    curtail: float = Field(default=0.0, ge=0, le=1, description="share of the export that is taken away")
    island: bool = Field(default=False, description="sites exchange nothing with the grid")


class EmergencyConfig(StrictModel):
    """Stages of an emergency and how it ends."""

    stages: tuple[StageConfig, ...] = (
        StageConfig(id=1, name="reduce", shed=0.25, curtail=0.25),
        StageConfig(id=2, name="halve", shed=0.5, curtail=0.5),
        StageConfig(id=3, name="essential only", shed=1.0, curtail=1.0),
        StageConfig(id=4, name="island", shed=1.0, curtail=1.0, island=True),
    )
    lease_s: int = Field(
        default=300, ge=120, le=3600, description="an instruction ends by itself after so long unless renewed"
    )
    confirm_s: int = Field(
        default=120, ge=10, le=900, description="so long a stage that was asked for waits for its confirmation"
    )
    two_persons: bool = Field(default=False, description="who confirms must not be who asked")
    longest_s: int = Field(default=14_400, ge=300, description="an emergency ends by itself after so long")
    calm_s: int = Field(default=600, ge=60, description="quiet for so long: one stage less")
    block_share: float = Field(
        default=0.3, gt=0, le=1, description="of the grid-forming power: the most that a step of a black start adds"
    )
    pickup: float = Field(default=2.0, ge=1, description="load after an outage over load before it (cold load pick-up)")
    step_s: int = Field(default=120, ge=30, description="between two steps of a black start")

    @model_validator(mode="after")
    def _rising(self) -> EmergencyConfig:
        for before, after in pairwise(self.stages):
            if not (before.id < after.id and before.shed <= after.shed and before.curtail <= after.curtail):
                raise ValueError(f"stage {after.id} has to take away no less than stage {before.id}")
        return self


class OpenAdrConfig(StrictModel):
    """A virtual top node (OpenADR 3) whose events become ours."""

    url: str = Field(pattern=r"^https?://", description="of the VTN, with its base path")
    client_id: str = Field(min_length=1, max_length=200)
    client_secret: Path = Field(description="a file")
    token_url: str | None = Field(
        default=None, description="of the authorisation server; asked of the VTN where left out"
    )
    scope: str | None = None
    ven_name: str = Field(default="wattmesh", pattern=NAME)
    programs: tuple[str, ...] = Field(default=(), description="names; empty for all that we may see")
    poll_s: int = Field(default=60, ge=10, le=3600)
    timeout_s: float = Field(default=10.0, gt=0, le=60)
    ca: Path | None = None


class GridConfig(StrictModel):
    """The grid as this operator sees it."""

    nominal_hz: Literal[50, 60] = 60
    demand_response: DemandResponseConfig = DemandResponseConfig()
    areas: tuple[AreaConfig, ...] = ()
    """Without any there is one, ``all``, with every site and no feeder."""
    emergency: EmergencyConfig = EmergencyConfig()
    openadr: OpenAdrConfig | None = None

    @model_validator(mode="after")
    def _one_area_a_site(self) -> GridConfig:
        seen: dict[str, str] = {}
        for area in self.areas:
            for site in area.sites:
                if site in seen:
                    raise ValueError(f"site {site} is in area {seen[site]} and in area {area.id}")
                seen[site] = area.id
        return self
