"""The hardware lab: scenarios and faults on simulated hardware."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from pydantic import Field

from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import PROBLEMS, HostEngineer
from wattmesh_cloud.lab import LabClient


class LabDevice(m.Answer):
    """A simulated device."""

    site: str
    device: str
    faults: dict[str, Any] = Field(description="Those that are on")
    requests: int


class LabScenario(m.Answer):
    """Something that can be started by its name."""

    id: str
    title: str
    fault: dict[str, Any] | None = None
    disturb: dict[str, Any] | None = None


class LabState(m.Answer):
    """The simulated hardware as it is now."""

    devices: list[LabDevice]
    frequency_hz: float
    nadir_hz: float
    disturbed: bool
    scenarios: list[LabScenario]


class LabFault(m.Request):
    """A fault of a device, for so long (real time)."""

    site: m.SiteName
    device: Annotated[str, Field(pattern=r"^(inverter|battery|meter)$", examples=["meter"])]
    name: Annotated[str, Field(pattern=r"^[a-z_]{2,30}$", examples=["silent"])]
    value: Annotated[str, Field(max_length=20, examples=["1"])] = "1"
    for_s: Annotated[float, Field(gt=0, le=3600, examples=[20])]


class LabDisturbance(m.Request):
    """Generation that is lost (negative) or gained, for so long (real time)."""

    power_w: Annotated[float, Field(ge=-1e6, le=1e6, examples=[-15000])]
    hold_s: Annotated[float, Field(gt=0, le=20, examples=[6])]


def lab_routes(lab: LabClient | None) -> APIRouter:
    """The routes; without simulators they say so."""
    routes = APIRouter(prefix="/lab", tags=["lab"], responses=PROBLEMS)

    async def ask(question: dict[str, Any]) -> LabState:
        if lab is None:
            raise HTTPException(404, "this fleet's hardware is not simulated here (lab in the cloud's file)")
        return LabState.model_validate(await lab.ask(question))

    @routes.get("")
    async def get_lab(who: HostEngineer) -> LabState:
        """Devices with their faults, scenarios, and the simulated grid."""
        return await ask({"do": "state"})

    @routes.post("/faults")
    async def start_fault(who: HostEngineer, wanted: LabFault) -> LabState:
        """Let a simulated device go wrong; it ends by itself."""
        return await ask({"do": "fault", **wanted.model_dump()})

    @routes.post("/disturbances")
    async def start_disturbance(who: HostEngineer, wanted: LabDisturbance) -> LabState:
        """Disturb the simulated grid."""
        return await ask({"do": "disturb", **wanted.model_dump()})

    @routes.post("/clear")
    async def clear_lab(who: HostEngineer) -> LabState:
        """End every fault."""
        return await ask({"do": "clear"})

    return routes
