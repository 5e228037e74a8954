"""A deployment's file, its stacks and what each takes: what `wattmesh aws` does, without AWS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field
from wattmesh_a2a.config_file import StrictModel, load_yaml_model
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_cloud.aws.cost import AS_BUILT, ECONOMY, SiteLoad

_REGION = r"^[a-z]{2}(-[a-z]+)+-\d$"
_BUCKET = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"


class CodeModel(StrictModel):
    """A package in a bucket."""

    bucket: str = Field(pattern=_BUCKET)
    key: str = Field(min_length=1, max_length=1024)


class AgentsModel(StrictModel):
    """The agents on AgentCore."""

    code: CodeModel
    model: str = "global.anthropic.claude-sonnet-4-6"
    prod_version: int | None = Field(default=None, ge=1, le=99_999)
    """The version that the prod endpoints stay at; none for the newest."""


class StandbyModel(StrictModel):
    """The second region."""

    region: str = Field(pattern=_REGION)
    code: CodeModel
    arrow_layer: str


class DeploymentModel(StrictModel):
    """A deployment's file."""

    version: Literal[1]
    environment: str = Field(pattern=r"^[a-z][a-z0-9]{1,15}$")
    region: str = Field(pattern=_REGION)
    org: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    area: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    alarm_email: str = Field(pattern=r"^[^@\s]+@[^@\s]+$")
    code: CodeModel
    arrow_layer: str = Field(pattern=r"^arn:aws[a-z-]*:lambda:.+:layer:.+:\d+$")
    sites: int = Field(default=1, ge=1, le=1_000_000, description="for the estimate")
    telemetry: Literal["live", "economy"] = "economy"
    """How the sites speak, as in their files."""
    monthly_budget: int = Field(default=100, ge=1)
    log_days: Literal[30, 90, 180, 365] = 90
    agents: AgentsModel | None = None
    standby: StandbyModel | None = None

    @property
    def load(self) -> SiteLoad:
        """What one site sends."""
        return ECONOMY if self.telemetry == "economy" else AS_BUILT


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One stack of a deployment."""

    part: Literal["data", "services", "agents", "standby"]
    name: str
    region: str
    keeps_data: bool
    """Whether it stays when the deployment is taken down."""


Outputs = Mapping[tuple[str, str], Mapping[str, str]]
"""Of stacks by (name, region)."""


def load_deployment(path: Path) -> DeploymentModel:
    """The deployment of a file; raises :class:`ConfigurationError` naming file, line and field."""
    model = load_yaml_model(path, DeploymentModel)
    if model.standby is not None and model.standby.region == model.region:
        raise ConfigurationError(f"{path}: standby.region: the second region is the first ({model.region})")
    return model


def stacks(model: DeploymentModel) -> list[Stack]:
    """All stacks in the order in which they are made."""
    name = f"wattmesh-{model.environment}"
    made = []
    if model.standby is not None:
        made.append(Stack(part="standby", name=f"{name}-standby", region=model.standby.region, keeps_data=True))
    made += [
        Stack(part="data", name=f"{name}-data", region=model.region, keeps_data=True),
        Stack(part="services", name=f"{name}-services", region=model.region, keeps_data=False),
    ]
    if model.agents is not None:
        made.append(Stack(part="agents", name=f"{name}-agents", region=model.region, keeps_data=False))
    if model.standby is not None:
        made.append(Stack(part="services", name=f"{name}-services", region=model.standby.region, keeps_data=False))
    return made


def template_text(part: str) -> str:
    """The template of a part; raises :class:`ConfigurationError` where the package lacks it.

    The agents' is made anew, so that the gateway has the tools' schemas of this very code; its file is for reading.
    """
    if part == "agents":
        from wattmesh_cloud.aws.agents_template import text

        return text()
    beside = Path(__file__).parents[2] / "infra" / f"{part}.yaml"
    if beside.is_file():  # a source tree
        return beside.read_text(encoding="utf-8")
    try:
        return files("wattmesh_cloud.infra").joinpath(f"{part}.yaml").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ConfigurationError(f"the template {part}.yaml is not where it belongs ({beside})") from error


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms."""


def _short(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    name = suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        return {name: str(value).split(".", 1)} if suffix == "GetAtt" else {name: value}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    raise ConfigurationError(f"a template with !{suffix} over a mapping")


_Loader.add_multi_constructor("!", _short)


def parsed(text: str) -> dict[str, Any]:
    """A template with its short forms written out."""
    found: dict[str, Any] = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader with CloudFormation's tags
    return found


def conditions(model: DeploymentModel, stack: Stack) -> dict[str, bool]:
    """What the templates' conditions over resources come to."""
    return {"Standby": model.standby is not None, "Budgeted": stack.region == model.region}


def parameters(model: DeploymentModel, stack: Stack, outputs: Outputs) -> dict[str, str] | None:
    """What a stack takes; none while a stack before it is not there yet."""
    name = f"wattmesh-{model.environment}"
    standby = model.standby
    second = standby is not None and stack.region == standby.region
    held = outputs.get((f"{name}-standby" if second else f"{name}-data", stack.region))
    values = {"Environment": model.environment}
    match stack.part:
        case "standby":
            return {**values, "LogDays": str(model.log_days)}
        case "data":
            values["LogDays"] = str(model.log_days)
            if standby is None:
                return values
            copy = outputs.get((f"{name}-standby", standby.region))
            if copy is None:
                return None
            return {
                **values,
                "StandbyBucket": copy["LakeBucketName"],
                "StandbyRegion": standby.region,
                "StandbyKeyId": copy["KeyId"],
            }
        case "services" if held is not None:
            code, layer = model.code, model.arrow_layer
            if second and standby is not None:
                code, layer = standby.code, standby.arrow_layer
            return {
                **values,
                "Org": model.org,
                "Area": model.area,
                "KeyArn": held["KeyArn"],
                "LakeBucket": held["LakeBucketName"],
                "CodeBucket": code.bucket,
                "CodeKey": code.key,
                "ArrowLayerArn": layer,
                "AcknowledgeEvery": "20" if model.telemetry == "economy" else "1",
                "AlarmEmail": model.alarm_email,
                "MonthlyBudget": "0" if second else str(model.monthly_budget),
            }
        case "agents" if held is not None and model.agents is not None:
            version = model.agents.prod_version
            return {
                **values,
                "KeyArn": held["KeyArn"],
                "CodeBucket": model.agents.code.bucket,
                "CodeKey": model.agents.code.key,
                "ModelId": model.agents.model,
                "ProdVersion": "" if version is None else str(version),
            }
        case _:
            return None
