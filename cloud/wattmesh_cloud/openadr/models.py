"""The objects of OpenADR 3.0.1 that a VEN needs, as the specification's ``openadr3.yaml`` has them, checked and bounded.

Of 3.1 what differs here is taken, too: targets that are plain strings, reports without a program. Unknown fields are ignored. Names
are the specification's; Python's are made of them by an alias.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AliasGenerator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

ObjectId = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
Name = Annotated[str, Field(min_length=1, max_length=128)]
_NOW = ("0000-00-00", "0000-01-01")
"""A start of "at once": the first is 3.0's, the second 3.1's."""


def _capital(name: str) -> str:
    """``program_id`` is ``programID`` on the wire."""
    camel = to_camel(name)
    return f"{camel[:-2]}ID" if camel.endswith("Id") else camel


def _start(value: Any) -> Any:
    """A start of "at once" is none."""
    return None if isinstance(value, str) and value.startswith(_NOW) else value


class OpenAdrModel(BaseModel):
    """What all of them share."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(alias=_capital), populate_by_name=True, extra="ignore", allow_inf_nan=False
    )

    def wire(self) -> dict[str, Any]:
        """As it stands in JSON; what is none is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Point(OpenAdrModel):
    """A pair of numbers."""

    x: float
    y: float


class ValuesMap(OpenAdrModel):
    """Values of a type."""

    type: Name
    values: list[float | int | str | bool | Point] = Field(max_length=1000)


class IntervalPeriod(OpenAdrModel):
    """When, and for how long."""

    start: Annotated[datetime | None, BeforeValidator(_start)] = None
    """None: at once."""
    duration: timedelta | None = None
    randomize_start: timedelta | None = None


class Interval(OpenAdrModel):
    """A stretch of time with its values."""

    id: int = Field(ge=-(2**31), lt=2**31)
    interval_period: IntervalPeriod | None = None
    payloads: list[ValuesMap] = Field(max_length=50)


class PayloadDescriptor(OpenAdrModel):
    """What a payload's numbers mean."""

    object_type: str | None = None
    payload_type: Name
    units: str | None = None
    currency: str | None = None
    reading_type: str | None = None


class ReportDescriptor(OpenAdrModel):
    """What the VTN wants to be told."""

    payload_type: Name
    reading_type: str | None = None
    units: str | None = None
    aggregate: bool = False
    start_interval: int = -1
    num_intervals: int = -1
    frequency: int = -1
    repeat: int = 1


Target = ValuesMap | str


class Event(OpenAdrModel):
    """A request of the grid side."""

    id: ObjectId
    created_date_time: datetime | None = None
    modification_date_time: datetime | None = None
    object_type: Literal["EVENT"] = "EVENT"
    program_id: ObjectId
    event_name: str | None = Field(default=None, max_length=1000)
    priority: int | None = Field(default=None, ge=0)
    targets: list[Target] | None = Field(default=None, max_length=1000)
    report_descriptors: list[ReportDescriptor] | None = Field(default=None, max_length=50)
    payload_descriptors: list[PayloadDescriptor] | None = Field(default=None, max_length=50)
    interval_period: IntervalPeriod | None = None
    intervals: list[Interval] = Field(max_length=1000)


class Program(OpenAdrModel):
    """What events belong to."""

    id: ObjectId
    object_type: Literal["PROGRAM"] = "PROGRAM"
    program_name: Name
    program_type: str | None = None
    payload_descriptors: list[PayloadDescriptor] | None = Field(default=None, max_length=50)
    interval_period: IntervalPeriod | None = None


class Ven(OpenAdrModel):
    """Ourselves, as the VTN knows us."""

    id: ObjectId | None = None
    object_type: Literal["VEN"] = "VEN"
    ven_name: Name


class ObjectOperations(OpenAdrModel):
    """What a subscription tells of."""

    objects: list[Literal["PROGRAM", "EVENT", "REPORT", "SUBSCRIPTION", "VEN", "RESOURCE"]]
    operations: list[Literal["READ", "CREATE", "UPDATE", "DELETE"]]
    callback_url: str
    bearer_token: str | None = None


class Subscription(OpenAdrModel):
    """A wish to be called when something changes."""

    id: ObjectId | None = None
    object_type: Literal["SUBSCRIPTION"] = "SUBSCRIPTION"
    client_name: Name
    program_id: ObjectId
    object_operations: list[ObjectOperations]


class ResourceReport(OpenAdrModel):
    """What one resource, or all of them together, did."""

    resource_name: Name = "AGGREGATED_REPORT"
    interval_period: IntervalPeriod | None = None
    intervals: list[Interval]


class Report(OpenAdrModel):
    """What a VEN tells of an event."""

    id: ObjectId | None = None
    object_type: Literal["REPORT"] = "REPORT"
    program_id: ObjectId
    event_id: ObjectId
    client_name: Name
    report_name: str | None = None
    payload_descriptors: list[PayloadDescriptor] | None = None
    resources: list[ResourceReport]
