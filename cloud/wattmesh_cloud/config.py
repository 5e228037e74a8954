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
from wattmesh_cloud.market.config import MarketConfig, check_areas
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


class A2aModel(StrictModel):
    """Where agents are served by A2A over HTTP, and who may talk to them."""

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    url: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    """As clients see it, when that is not the host and port above."""
    tokens: Path
    """JSON: id, SHA-256 of the token or identity in the certificate, roles, and sites (none for all) of each caller."""
    certificate: Path | None = None
    """With its key: TLS, which is a must beyond loopback."""
    key: Path | None = None
    client_ca: Path | None = None
    """Clients may show a certificate of this authority instead of a token; with ``crl``, none that was revoked."""
    push_origins: list[str] = []
    """Receivers of push notifications of our own (``http://10.0.0.7:8000``); all others are public addresses by HTTPS."""


class IngestModel(StrictModel):
    """Who takes the telemetry."""

    workers: int = Field(default=0, ge=0, le=16)
    """Processes beside the cloud's (``wattmesh ingest work CLOUD.yaml --number N``); 0: the cloud's own takes it."""


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
    ingest: IngestModel = IngestModel()
    tools: ToolsModel | None = None
    a2a: A2aModel | None = None
    history: Path | None = None
    market: MarketConfig
    areas: tuple[MarketConfig, ...] = ()
    """Further market areas, each with its own participants, rules, journal and ledger."""
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
    try:
        check_areas((model.market, *model.areas))
        for area in model.areas:
            area.tariff.tariff(area.time_zone).zone()
    except ConfigurationError as error:
        raise ConfigurationError(f"{place(path, 'areas')}: {error}") from error
    base = path.parent
    history = (base / model.history).resolve() if model.history is not None else None
    if history is not None and not history.is_dir():
        raise ConfigurationError(f"{place(path, 'history')}: {history} is no folder")
    files = {
        name: base / given
        for name in ("ca", "certificate", "key", "crl")
        if (given := getattr(model, name)) is not None
    }
    if model.tools is not None:
        files["tools"] = model.tools.model_copy(update={"tokens": base / model.tools.tokens})
    if model.a2a is not None:
        files["a2a"] = _a2a(path, model.a2a)
    model = model.model_copy(update=files)
    return CloudConfig(
        model=model,
        state=(base / model.state).resolve(),
        keys=None if model.keys is None else (base / model.keys).resolve(),
        history=history,
    )


def _a2a(path: Path, model: A2aModel) -> A2aModel:
    """The section with paths that can be used; raises :class:`ConfigurationError`."""
    if (model.certificate is None) != (model.key is None):
        raise ConfigurationError(f"{place(path, 'a2a')}: certificate and key go together")
    if model.certificate is None and (model.client_ca is not None or not is_loopback(model.host)):
        raise ConfigurationError(
            f"{place(path, 'a2a', 'host')}: {model.host} without TLS; give certificate and key, or use 127.0.0.1"
        )
    names = ("tokens", "certificate", "key", "client_ca")
    return model.model_copy(
        update={name: path.parent / found for name in names if (found := getattr(model, name)) is not None}
    )
