"""A device as data: the format of ``firmware_configs/devices/*.yaml``, checked down to the line.

``python -m wattmesh_drivers.template`` prints the JSON schema that editors use (``firmware_configs/device.schema.json``).
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from wattmesh_a2a.config_file import StrictModel, load_yaml_model
from wattmesh_a2a.devices import AssetKind
from wattmesh_a2a.errors import ConfigurationError

import firmware_configs
from wattmesh_drivers.kinds import KINDS

_DEVICES = Path(firmware_configs.__file__).parent / "devices"

RegisterType = Literal["u16", "s16", "u32", "s32", "u64", "s64", "f32", "f64"]
OpcUaType = Literal["double", "float", "int16", "uint16", "int32", "uint32", "int64", "uint64", "boolean"]


class ConnectionNeeds(StrictModel):
    """What a device asks of whoever talks to it."""

    max_registers: int = Field(default=120, ge=2, le=125, description="registers in one request")
    connect_delay_ms: int = Field(default=0, ge=0, le=10_000, description="pause after the connection is made")
    request_gap_ms: int = Field(default=0, ge=0, le=10_000, description="pause between two requests")
    timeout_ms: int = Field(default=1000, ge=50, le=60_000, description="longest wait for an answer")
    latency_ms: float = Field(default=5.0, ge=0, le=10_000, description="usual time to an answer; for the poll planner")
    pipeline: int = Field(default=1, ge=1, le=16, description="requests that may be under way at once (TCP)")
    single_client: bool = Field(default=False, description="the device serves one connection at a time")
    refresh_ms: int | None = Field(default=None, ge=1, description="how often the device renews its values")
    port: int = Field(default=502, ge=1, le=65535, description="its usual TCP port")
    unit: int = Field(default=1, ge=0, le=255, description="its usual unit identifier")
    baud: int = Field(default=9600, ge=300, le=1_000_000, description="its usual serial speed")


class PointModel(StrictModel):
    """One point. Which of the address fields it has follows from the template's protocol."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="name with its unit, unique in the template")
    function: Literal[3, 4] | None = Field(default=None, description="Modbus function that reads it")
    write_function: Literal[6, 16] | None = Field(default=None, description="Modbus function that writes it")
    address: int | None = Field(default=None, ge=0, le=65535, description="0-based register address")
    high_address: int | None = Field(
        default=None, ge=0, le=65535, description="register of the high word, where it does not lie beside the low one"
    )
    type: RegisterType | OpcUaType | None = None
    word_order: Literal["big", "little"] = Field(default="big", description="which word of a wide value comes first")
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="value = raw × scale × sign + offset")
    sign: Literal[1, -1] = 1
    offset: float = Field(default=0.0, allow_inf_nan=False)
    resolution: float | None = Field(default=None, gt=0, description="step of the value; default: scale of integers")
    sentinel: int | None = Field(default=None, description="raw value that means: no data")
    sync: str | None = Field(default=None, description="points of one name are read in one request")
    sum: dict[str, float] | None = Field(
        default=None, description="not read: the sum of other points, each times its factor"
    )
    model: int | None = Field(default=None, description="SunSpec model")
    group: str | None = Field(default=None, description="SunSpec group inside the model, like module or Crv[1].Pt")
    index: int = Field(default=0, ge=0, description="which repetition of the group")
    point: str | None = Field(default=None, description="SunSpec point")
    node: str | None = Field(default=None, description="OPC UA node id without its namespace, like s=Name")
    path: str | None = Field(
        default=None, description="OPC UA browse path below Objects, like Battery/{urn:other}Power; instead of node"
    )
    dead_band: float | None = Field(default=None, gt=0, description="OPC UA subscription: smaller changes are not told")
    minimum: float | None = None
    maximum: float | None = None


class SignedValue(StrictModel):
    """A constant that depends on the target: which way it goes."""

    charge: float
    """Where the target is positive."""
    discharge: float
    idle: float


class StepModel(StrictModel):
    """One write of a control."""

    setting: str
    value: float | Literal["target", "charge", "discharge", "magnitude"] | SignedValue = Field(
        description="a constant; target; its part that charges or discharges, as a positive number; or by its direction"
    )

    def of(self, target: float) -> float:
        """What is written for a target, in the setting's unit."""
        if isinstance(self.value, SignedValue):
            return self.value.charge if target > 0 else self.value.discharge if target < 0 else self.value.idle
        if isinstance(self.value, str):
            return {"target": target, "charge": max(target, 0.0), "discharge": max(-target, 0.0)}.get(
                self.value, abs(target)
            )
        return self.value

    @property
    def constant(self) -> bool:
        """Whether it is the same for every target."""
        return isinstance(self.value, float)


class IdentityModel(StrictModel):
    """A register that tells whether this is the device, or whether it is set up as its map needs."""

    function: Literal[3, 4] = 3
    address: int = Field(ge=0, le=65535)
    one_of: tuple[int, ...] = Field(min_length=1, description="raw values of 16 bits that it may have")
    hint: str = Field(description="what to do where it has another")


class FrozenModel(StrictModel):
    """How a device is found out whose values have stopped: these never stand still while it lives."""

    points: tuple[str, ...] = Field(min_length=1)
    seconds: float = Field(default=120.0, gt=0, description="all of them unchanged for so long: no value is believed")
    polls: int = Field(default=60, ge=2, description="and over so many polls")


class SubscriptionModel(StrictModel):
    """OPC UA: be told of changes instead of reading; what the server grants is read back and may be more."""

    sampling_ms: float = Field(default=250.0, ge=0, le=60_000)
    publishing_ms: float = Field(default=500.0, ge=10, le=60_000)
    queue_size: int = Field(default=1, ge=1, le=1000)


class WatchdogModel(StrictModel):
    """The setting whose rewriting keeps the device from falling back."""

    setting: str
    seconds: float = Field(gt=0)


class ControlModel(StrictModel):
    """How a control is carried out."""

    steps: tuple[StepModel, ...] = Field(min_length=1)
    readback: str | tuple[str, ...] | None = Field(
        default=None, description="settings that are read again after the write"
    )
    release: tuple[StepModel, ...] = Field(
        default=(), description="steps that give the device back to its own management when the gateway ends in order"
    )
    whole: bool = Field(default=False, description="a change writes every step, not only what differs")
    reflex: str | None = Field(default=None, description="the setting the reflex may write between two cycles")
    watchdog: WatchdogModel | None = None
    storage: Literal["volatile", "flash"] = "volatile"
    writes_per_day: int | None = Field(default=None, ge=1, description="budget, for settings kept in flash")
    minimum_interval_ms: int = Field(default=0, ge=0)
    minimum: float | None = None
    maximum: float | None = None


class Template(StrictModel):
    """One family of devices."""

    template: Literal[1]
    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: AssetKind
    manufacturer: str
    products: tuple[str, ...]
    protocol: Literal["modbus", "sunspec", "opcua"]
    connection: ConnectionNeeds = ConnectionNeeds()
    namespace: str | None = Field(default=None, description="OPC UA namespace URI of the nodes")
    subscription: SubscriptionModel | None = None
    makes: tuple[str, ...] = Field(
        default=(),
        description="SunSpec: manufacturers (model 1) of whom registers beside the map are used; no other is read",
    )
    identity: tuple[IdentityModel, ...] = ()
    frozen: FrozenModel | None = None
    monitor_only: bool = Field(
        default=False, description="nothing of it can be controlled, though its kind usually can"
    )
    points: tuple[PointModel, ...] = Field(min_length=1)
    settings: tuple[PointModel, ...] = ()
    controls: dict[str, ControlModel] = {}
    safe_state: dict[str, float] = {}
    sources: tuple[str, ...] = Field(min_length=1)
    caveats: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Template:
        """Names exist once and are known, addresses fit the protocol, the kind's contract is met."""
        names = [point.id for point in (*self.points, *self.settings)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"point {name!r} stands twice")
        for point in (*self.points, *self.settings):
            self._check_place(point)
        beside = [point.id for point in (*self.points, *self.settings) if point.address is not None]
        if self.protocol == "sunspec" and beside and not self.makes:
            raise ValueError(f"{beside[0]!r} is a maker's own register; name the makers in 'makes'")
        if self.protocol == "opcua" and not self.namespace:
            raise ValueError("an OPC UA template needs the namespace's URI")
        settings = {point.id for point in self.settings}
        for name, control in self.controls.items():
            used = [step.setting for step in (*control.steps, *control.release)]
            used += readbacks(control)
            used += [control.reflex] if control.reflex else []
            used += [control.watchdog.setting] if control.watchdog else []
            for setting in used:
                if setting not in settings:
                    raise ValueError(f"control {name!r} uses {setting!r}, which is not among the settings")
            if all(step.constant for step in control.steps):
                raise ValueError(f"control {name!r} never writes its target")
            if not all(step.constant for step in control.release):
                raise ValueError(f"control {name!r}: release has no target; its values are constants")
            if control.storage == "flash" and control.writes_per_day is None:
                raise ValueError(f"control {name!r} writes to flash and needs writes_per_day")
        for name in self.safe_state:
            if name not in self.controls:
                raise ValueError(f"safe_state names {name!r}, which is no control of this template")
        for name in self.frozen.points if self.frozen else ():
            if name not in names:
                raise ValueError(f"frozen names {name!r}, which is no point of this template")
        if self.monitor_only and self.controls:
            raise ValueError("a template that is monitor_only has no controls")
        contract = KINDS[self.kind]
        for name in contract.measures - set(names):
            raise ValueError(f"a {self.kind} must measure {name!r}")
        if self.monitor_only:
            return self
        for name in contract.controls - set(self.controls):
            raise ValueError(f"a {self.kind} must have the control {name!r}")
        for name in contract.controls - set(self.safe_state):
            raise ValueError(f"safe_state must say what {name!r} is when nobody asks")
        return self

    def _check_place(self, point: PointModel) -> None:
        """A point has what its protocol needs to find it, and nothing that contradicts it."""
        if point.sum is not None:
            terms = {other.id: other for other in self.points}
            for name in point.sum:
                if name not in terms or terms[name].sum is not None:
                    raise ValueError(f"point {point.id!r} is a sum with {name!r}, which is no point that is read")
            if point.address is not None or point.node is not None or point.point is not None:
                raise ValueError(f"point {point.id!r} is a sum and is read as well; it can be only one of them")
            return
        if self.protocol == "opcua" and (point.node is None) == (point.path is None):
            raise ValueError(f"point {point.id!r} needs 'node' or 'path', one of them, as the protocol is opcua")
        needed = {"modbus": ("function", "address", "type"), "sunspec": ("model", "point"), "opcua": ("type",)}
        beside = self.protocol == "sunspec" and point.address is not None and point.model is None
        for field in needed["modbus" if beside else self.protocol]:  # a maker's own register beside its SunSpec map
            if getattr(point, field) is None:
                raise ValueError(f"point {point.id!r} needs {field!r}, as the protocol is {self.protocol}")
        if point.write_function == 6 and point.type not in {"u16", "s16", None}:
            raise ValueError(f"point {point.id!r}: function 6 writes one register, and {point.type} takes more")
        if point.high_address is not None and point.type not in {"u32", "s32"}:
            raise ValueError(f"point {point.id!r}: high_address goes with u32 and s32, not with {point.type}")
        if any(point.id == setting.id for setting in self.settings) and (
            point.offset or point.high_address is not None
        ):
            raise ValueError(f"setting {point.id!r}: an offset or high_address cannot be written")

    def setting(self, setting_id: str) -> PointModel:
        """The writable point of that name."""
        return next(setting for setting in self.settings if setting.id == setting_id)


def readbacks(control: ControlModel) -> tuple[str, ...]:
    """Settings that are read again after a write of the control."""
    found = control.readback
    return () if found is None else (found,) if isinstance(found, str) else found


def template_ids() -> list[str]:
    """Names of all templates that come with WattMesh."""
    return sorted(path.stem for path in _DEVICES.glob("*.yaml"))


@cache
def load_template(name: str) -> Template:
    """A template by its name, or by the path of a file of one's own (ending in ``.yaml``).

    Raises:
        ConfigurationError: There is none, or the file breaks the format; file, line and field are named.
    """
    if name.endswith(".yaml"):
        return load_yaml_model(Path(name), Template)
    if name not in template_ids():
        raise ConfigurationError(f"there is no device template {name!r}; there are: {', '.join(template_ids())}")
    return load_yaml_model(_DEVICES / f"{name}.yaml", Template)


def schema_text() -> str:
    """The JSON schema of a template file."""
    return json.dumps(Template.model_json_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
