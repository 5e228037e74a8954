"""The cloud's file; every mistake names file, line and field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel, load_yaml_model, place
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.transports.mqtt import is_loopback, parse_broker_url

from wattmesh_cloud.agents.config import AgentsConfig
from wattmesh_cloud.forecasting.config import ForecastingConfig
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.planning.config import PlanningConfig


class HttpModel(StrictModel):
    """Where API and console listen."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)


class ToolsModel(StrictModel):
    """Where the tools are served by MCP, on loopback as the API is, and who may call them."""

    port: int = Field(ge=1, le=65535)
    tokens: Path
    """JSON: id, SHA-256 of the token, roles, and sites (none for all) of each caller."""


class CloudModel(StrictModel):
    """A cloud file."""

    version: Literal[1]
    org: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    state: Path
    broker: str
    keys: Path | None = None
    """The folder of keys shared with the sites; without it commands are signed with the certificate below."""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    crl: Path | None = None
    http: HttpModel = HttpModel()
    tools: ToolsModel | None = None
    history: Path | None = None
    market: MarketConfig
    forecasting: ForecastingConfig = ForecastingConfig()
    grid: GridConfig = GridConfig()
    planning: PlanningConfig = PlanningConfig()
    agents: AgentsConfig = AgentsConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudConfig:
    """A checked file with paths that can be used."""

    model: CloudModel
    state: Path
    keys: Path | None
    history: Path | None


def load_cloud(path: Path) -> CloudConfig:
    """The configuration in a file; raises :class:`ConfigurationError`. Nothing is started by it."""
    model = load_yaml_model(path, CloudModel)
    try:
        parse_broker_url(model.broker)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place(path, 'broker')}: {error}") from error
    if model.keys is None and None in {model.ca, model.certificate, model.key}:
        raise ConfigurationError(f"{path}: give keys, or ca, certificate and key (wattmesh pki), to sign with")
    if not is_loopback(model.http.host):
        raise ConfigurationError(
            f"{place(path, 'http', 'host')}: {model.http.host} can be reached by others, and there is no login yet; use 127.0.0.1 "
            "and a reverse proxy that asks who comes"
        )
    try:
        model.market.tariff.tariff(model.market.time_zone).zone()
    except ConfigurationError as error:
        raise ConfigurationError(f"{place(path, 'market', 'time_zone')}: {error}") from error
    base = path.parent
    history = (base / model.history).resolve() if model.history is not None else None
    if history is not None and not history.is_dir():
        raise ConfigurationError(f"{place(path, 'history')}: {history} is no folder")
    files: dict[str, object] = {
        name: base / path for name in ("ca", "certificate", "key", "crl") if (path := getattr(model, name)) is not None
    }
    if model.tools is not None:
        files["tools"] = model.tools.model_copy(update={"tokens": base / model.tools.tokens})
    weather = model.forecasting.weather
    if weather is not None:
        own = {name: base / path for name in ("key", "file") if (path := getattr(weather, name)) is not None}
        files["forecasting"] = model.forecasting.model_copy(update={"weather": weather.model_copy(update=own)})
    model = model.model_copy(update=files)
    return CloudConfig(
        model=model,
        state=(base / model.state).resolve(),
        keys=None if model.keys is None else (base / model.keys).resolve(),
        history=history,
    )
