"""Response profiles: how power follows frequency, as data (``firmware_configs/responses``), and what must hold before one is used.

:func:`schema_text` is the JSON schema that editors use (``firmware_configs/response.schema.json``).
"""

from __future__ import annotations

import importlib.resources
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from wattmesh_a2a.config_file import StrictModel, load_yaml_model
from wattmesh_a2a.errors import ConfigurationError

FINEST_HZ = 0.01
"""A register with coarser steps is too coarse to respond on; the site then only watches."""
_POINTS, _BLOCKS, _TRIPS = 12, 4, 12
"""Room in the native thread."""
_CONFIRM_MS = 4.0
"""A block is set off when the frequency has been beyond its trigger so long: the phase-step guard has seen more by then."""


class Continuous(StrictModel):
    """Power that follows the deviation: by droop, or along points."""

    dead_band_hz: float = Field(default=0.0, ge=0, le=1)
    droop: float | None = Field(
        default=None, gt=0.005, le=0.2, description="per unit; full power at dead band + droop × f0"
    )
    points: tuple[tuple[float, float], ...] | None = Field(
        default=None, max_length=_POINTS, description="deviation in Hz, share of the power; negative: less consumption"
    )
    open_loop_response_s: float = Field(default=0.0, ge=0, le=60, description="to 90 % of a step (IEEE 1547-2018, 3.1)")
    delay_s: float = Field(default=0.0, ge=0, le=10, description="intentional delay")
    ramp_pu_per_s: float | None = Field(default=None, gt=0, description="fastest change away from the baseline")
    recovery_pu_per_s: float | None = Field(default=None, gt=0, description="fastest change back to it")

    @model_validator(mode="after")
    def _one_curve(self) -> Continuous:
        if (self.droop is None) == (self.points is None):
            raise ValueError("a continuous response has either 'droop' or 'points'")
        if self.points is not None:
            if len(self.points) < 2:
                raise ValueError("'points' needs two points or more")
            for (left, low), (right, high) in zip(self.points, self.points[1:], strict=False):
                if not right > left:
                    raise ValueError("'points' must have growing deviations")
                if high < low:
                    raise ValueError("'points' must not ask for less consumption at a higher frequency")
            for deviation, share in self.points:
                if not (math.isfinite(deviation) and abs(share) <= 1):
                    raise ValueError("a share in 'points' is at most 1 either way")
                if deviation * share < 0:
                    raise ValueError("'points': low frequency asks for less consumption (negative), high for more")
        return self

    def curve(self, nominal_hz: float) -> tuple[tuple[float, float], ...]:
        """Points of the curve. Droop: ΔP = (|Δf| − db) / (k·f0), IEEE 1547-2018, 6.5.2.7."""
        if self.points is not None:
            return self.points
        assert self.droop is not None
        far = self.dead_band_hz + self.droop * nominal_hz
        band = self.dead_band_hz
        inner = ((-band, 0.0), (band, 0.0)) if band else ((0.0, 0.0),)
        return ((-far, -1.0), *inner, (far, 1.0))


class BlockModel(StrictModel):
    """A block of power, set off at a threshold."""

    trigger_hz: float = Field(gt=40, lt=70)
    power_pu: float = Field(ge=-1, le=1)
    confirm_ms: float = Field(default=_CONFIRM_MS, ge=0, le=1000)
    hold_s: float = Field(gt=0, le=3600)
    recovery_s: float = Field(default=0.0, ge=0, le=600, description="from full power back to the baseline")
    rearm_s: float = Field(ge=0, le=86400)


class TripModel(StrictModel):
    """Beyond the threshold for so long, power is brought to zero."""

    quantity: Literal["over_frequency", "under_frequency", "over_voltage", "under_voltage"]
    threshold: float = Field(gt=0, description="Hz, or per unit of the nominal voltage")
    clearing_s: float = Field(gt=0, le=3600)


class EnterServiceModel(StrictModel):
    """After a trip: inside these for so long, then a ramp; an excursion begins it anew (IEEE 1547-2018, 4.10)."""

    low_hz: float
    high_hz: float
    low_pu: float
    high_pu: float
    after_s: float = Field(ge=0, le=3600)
    ramp_s: float = Field(ge=0, le=3600)


class RequiredModel(StrictModel):
    """What the product asks for; the prequalification report measures it."""

    starts_s: float = Field(gt=0)
    full_s: float = Field(gt=0)


class ResponseProfile(StrictModel):
    """How power follows frequency."""

    profile: Literal[1]
    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    nominal_hz: tuple[Literal[50, 60], ...] = Field(min_length=1)
    continuous: Continuous | None = None
    blocks: tuple[BlockModel, ...] = Field(default=(), max_length=_BLOCKS)
    trip: tuple[TripModel, ...] = Field(default=(), max_length=_TRIPS)
    enter_service: EnterServiceModel | None = None
    required: RequiredModel | None = None
    sustain_s: float = Field(
        default=0.0, ge=0, le=14400, description="full power must be held so long: the energy kept for it"
    )
    slowest_refresh_ms: int = Field(
        default=100, ge=1, le=10_000, description="a source renewed more slowly only watches"
    )
    sources: tuple[str, ...] = Field(min_length=1)
    caveats: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> ResponseProfile:
        if self.trip and self.enter_service is None:
            raise ValueError("a profile with 'trip' needs 'enter_service'")
        for block in self.blocks:
            if (block.trigger_hz < min(self.nominal_hz)) != (block.power_pu < 0):
                raise ValueError("'blocks': low frequency asks for less consumption (negative), high for more")
        return self

    @property
    def moves(self) -> bool:
        """Whether it moves power at all."""
        return self.continuous is not None or bool(self.blocks) or bool(self.trip)

    def largest_shares(self, nominal_hz: float) -> tuple[float, float]:
        """(least, greatest) share of the power that it can ask for."""
        shares = [0.0]
        if self.continuous is not None:
            shares += [share for _, share in self.continuous.curve(nominal_hz)]
        low = min(shares) + sum(block.power_pu for block in self.blocks if block.power_pu < 0)
        high = max(shares) + sum(block.power_pu for block in self.blocks if block.power_pu > 0)
        return max(low, -1.0), min(high, 1.0)

    def energy_wh(self, nominal_hz: float, power_w: float) -> tuple[float, float]:
        """Energy to be kept for it: (that can be discharged, that can be charged)."""
        low, high = self.largest_shares(nominal_hz)
        return -low * power_w * self.sustain_s / 3600, high * power_w * self.sustain_s / 3600


def profile_ids() -> list[str]:
    """Names of all profiles that come with WattMesh."""
    folder = importlib.resources.files("firmware_configs") / "responses"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_profile(name: str) -> ResponseProfile:
    """A profile by name, or by the path of a file of one's own (ending in ``.yaml``).

    Raises:
        ConfigurationError: There is none (the text has the names there are), or the file breaks the format.
    """
    if name.endswith(".yaml"):
        return load_yaml_model(Path(name), ResponseProfile)
    if name not in profile_ids():
        raise ConfigurationError(f"there is no response profile {name!r}; there are: {', '.join(profile_ids())}")
    path = importlib.resources.files("firmware_configs") / "responses" / f"{name}.yaml"
    with importlib.resources.as_file(path) as file:
        return load_yaml_model(file, ResponseProfile)


def check_profile(
    profile: ResponseProfile,
    *,
    nominal_hz: float,
    power_w: float,
    rated_power_w: float,
    rated_energy_wh: float,
    import_limit_w: float,
    export_limit_w: float,
    reserve_soc_percent: float = 0.0,
) -> None:
    """Refuse a response that could exceed what the device or the connection carries.

    Args:
        profile: The response.
        nominal_hz: Of the grid.
        power_w: What a share of 1 means (the contracted power).
        rated_power_w: Of the battery.
        rated_energy_wh: Of the battery.
        import_limit_w: Of the connection, a positive magnitude.
        export_limit_w: Of the connection, a positive magnitude.
        reserve_soc_percent: What is never discharged.

    Raises:
        ConfigurationError: With the limit and what to do.
    """
    if nominal_hz not in profile.nominal_hz:
        there = " or ".join(f"{one}" for one in profile.nominal_hz)
        raise ConfigurationError(f"response profile {profile.id} is for {there} Hz, and the grid has {nominal_hz:g} Hz")
    low, high = profile.largest_shares(nominal_hz)
    largest = max(-low, high) * power_w
    if largest > rated_power_w * 1.0001:
        raise ConfigurationError(
            f"response profile {profile.id} could ask for {largest:.0f} W, and the battery is rated {rated_power_w:.0f} W; "
            f"set power_w to {rated_power_w:.0f} or less"
        )
    for wanted, limit, name in ((-low * power_w, export_limit_w, "export"), (high * power_w, import_limit_w, "import")):
        if wanted > limit:
            raise ConfigurationError(
                f"response profile {profile.id} could ask for {wanted:.0f} W of {name}, and the connection carries "
                f"{limit:.0f} W; set power_w to {limit:.0f} or less"
            )
    out_wh, in_wh = profile.energy_wh(nominal_hz, power_w)
    usable = rated_energy_wh * (1 - reserve_soc_percent / 100)
    if out_wh + in_wh > usable:
        raise ConfigurationError(
            f"response profile {profile.id} needs {out_wh + in_wh:.0f} Wh kept for {profile.sustain_s:g} s of {power_w:.0f} W, "
            f"and the battery has {usable:.0f} Wh above its reserve; set power_w to "
            f"{power_w * usable / (out_wh + in_wh):.0f} or less"
        )


def kernel_response(profile: ResponseProfile, nominal_hz: float) -> dict[str, Any]:
    """The profile in the native thread's words."""
    words: dict[str, Any] = {
        "points": [],
        "blocks": [
            {
                "trigger_hz": block.trigger_hz,
                "power_pu": block.power_pu,
                "recovery_pu_per_s": abs(block.power_pu) / block.recovery_s if block.recovery_s else 1e9,
                "confirm_ns": round(block.confirm_ms * 1e6),
                "hold_ns": round(block.hold_s * 1e9),
                "rearm_ns": round(block.rearm_s * 1e9),
            }
            for block in profile.blocks
        ],
        "trips": [
            {
                "voltage": trip.quantity.endswith("voltage"),
                "over": trip.quantity.startswith("over"),
                "threshold": trip.threshold,
                "after_ns": round(trip.clearing_s * 1e9),
            }
            for trip in profile.trip
        ],
    }
    continuous = profile.continuous
    if continuous is not None:
        words["points"] = list(continuous.curve(nominal_hz))
        words["tau_s"] = continuous.open_loop_response_s / math.log(10)
        words["ramp_pu_per_s"] = continuous.ramp_pu_per_s
        words["recovery_pu_per_s"] = continuous.recovery_pu_per_s
        words["delay_ns"] = round(continuous.delay_s * 1e9)
    if profile.enter_service is not None:
        enter = profile.enter_service
        words["enter_service"] = {
            "low_hz": enter.low_hz,
            "high_hz": enter.high_hz,
            "low_pu": enter.low_pu,
            "high_pu": enter.high_pu,
            "after_ns": round(enter.after_s * 1e9),
            "ramp_ns": round(enter.ramp_s * 1e9),
        }
    return words


def schema_text() -> str:
    """The JSON schema of a profile file."""
    return json.dumps(ResponseProfile.model_json_schema(), indent=1, sort_keys=True) + "\n"
