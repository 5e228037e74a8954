"""The cloud's file; every mistake names file, line and field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from wattmesh_a2a.config_file import StrictModel, load_yaml_model, place
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.transports.mqtt import is_loopback, parse_broker_url

from wattmesh_cloud.access.config import AccessModel
from wattmesh_cloud.agents.config import AgentsConfig
from wattmesh_cloud.forecasting.config import ForecastingConfig
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.homeassistant import HomeAssistantModel
from wattmesh_cloud.lab import LabModel
from wattmesh_cloud.market.config import LinkModel, MarketConfig, check_areas, check_links
from wattmesh_cloud.notifications.config import NotificationsModel
from wattmesh_cloud.planning.config import PlanningConfig
from wattmesh_cloud.reports.service import ReportsModel


class HttpModel(StrictModel):
    """Where API and console listen, and how people reach them."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)
    certificate: Path | None = None
    """PEM; with ``key``, API and console are served by TLS (1.2 or newer)."""
    key: Path | None = None
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$",
        description="as people type it, where a proxy stands before",
    )


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
    tokens: Path | None = None
    """JSON: id, SHA-256 of the token or identity in the certificate, roles, and sites (none for all) of each caller. The tokens
    of the HTTP API are taken as well."""
    certificate: Path | None = None
    """With its key: TLS, which is a must beyond loopback."""
    key: Path | None = None
    client_ca: Path | None = None
    """Clients may show a certificate of this authority instead of a token; with ``crl``, none that was revoked."""
    push_origins: list[str] = []
    """Receivers of push notifications of our own (``http://10.0.0.7:8000``); all others are public addresses by HTTPS."""


class ObservabilityModel(StrictModel):
    """Where figures and traces go, beside ``/metrics``."""

    emf: Path | None = None
    """Figures for CloudWatch's agent, a line a minute and set of labels, in its embedded metric format."""
    namespace: str = Field(default="WattMesh", pattern=r"^[A-Za-z0-9._/-]{1,128}$")
    otlp: str | None = Field(default=None, pattern=r"^(https://|http://(127\.0\.0\.1|localhost)[:/])")
    """An OpenTelemetry collector (``http://127.0.0.1:4318/v1/traces``); beyond this machine by https."""


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
    observability: ObservabilityModel = ObservabilityModel()
    action_queue: str | None = Field(
        default=None, pattern=r"^https://sqs\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/\d{12}/[^/]+$"
    )
    """AWS: the queue into which the action function puts what it accepted."""
    access: AccessModel = AccessModel()
    lab: LabModel | None = None
    reports: ReportsModel = ReportsModel()
    notifications: NotificationsModel = NotificationsModel()
    home_assistant: tuple[HomeAssistantModel, ...] = ()
    tools: ToolsModel | None = None
    a2a: A2aModel | None = None
    history: Path | None = None
    market: MarketConfig
    areas: tuple[MarketConfig, ...] = ()
    """Further market areas, each with its own participants, rules, journal and ledger."""
    links: tuple[LinkModel, ...] = ()
    """Lines between them; without any, no energy flows from one to the other."""
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
    _check_http(path, model)
    try:
        model.market.tariff.tariff(model.market.time_zone).zone()
    except ConfigurationError as error:
        raise ConfigurationError(f"{place(path, 'market', 'time_zone')}: {error}") from error
    try:
        check_areas((model.market, *model.areas))
        check_links(model.links, (model.market, *model.areas))
        for area in model.areas:
            area.tariff.tariff(area.time_zone).zone()
    except ConfigurationError as error:
        raise ConfigurationError(f"{place(path, 'areas')}: {error}") from error
    base = path.parent
    history = (base / model.history).resolve() if model.history is not None else None
    if history is not None and not history.is_dir():
        raise ConfigurationError(f"{place(path, 'history')}: {history} is no folder")
    files: dict[str, object] = {
        name: base / given
        for name in ("ca", "certificate", "key", "crl")
        if (given := getattr(model, name)) is not None
    }
    files["observability"] = _placed(base, model.observability, "emf")
    files["http"] = _placed(base, model.http, "certificate", "key")
    files["notifications"] = model.notifications.model_copy(
        update={
            "webhooks": tuple(_placed(base, one, "secret") for one in model.notifications.webhooks),
            "mail": tuple(_placed(base, one, "password") for one in model.notifications.mail),
        }
    )
    files["home_assistant"] = tuple(_placed(base, one, "password", "ca") for one in model.home_assistant)
    if model.lab is not None:
        files["lab"] = _placed(base, model.lab, "secret")
    if model.access.oidc is not None:
        oidc = _placed(base, model.access.oidc, "client_secret")
        files["access"] = model.access.model_copy(update={"oidc": oidc})
    if model.tools is not None:
        files["tools"] = model.tools.model_copy(update={"tokens": base / model.tools.tokens})
    weather = model.forecasting.weather
    if weather is not None:
        files["forecasting"] = model.forecasting.model_copy(update={"weather": _placed(base, weather, "key", "file")})
    if model.grid.openadr is not None:
        openadr = _placed(base, model.grid.openadr, "client_secret", "ca")
        files["grid"] = model.grid.model_copy(update={"openadr": openadr})
    if model.a2a is not None:
        files["a2a"] = _a2a(path, model.a2a)
    model = model.model_copy(update=files)
    return CloudConfig(
        model=model,
        state=(base / model.state).resolve(),
        keys=None if model.keys is None else (base / model.keys).resolve(),
        history=history,
    )


def _check_http(path: Path, model: CloudModel) -> None:
    """Whoever can be reached by others has to encrypt, and to ask who comes."""
    http, where = model.http, place(path, "http", "host")
    if (http.certificate is None) != (http.key is None):
        raise ConfigurationError(f"{place(path, 'http')}: certificate and key go together")
    encrypted = http.certificate is not None or (http.public_url or "").startswith("https://")
    if not is_loopback(http.host) and (http.certificate is None or http.public_url is None):
        raise ConfigurationError(
            f"{where}: {http.host} can be reached by others: give http.certificate, http.key and http.public_url (the name "
            "people use), or use 127.0.0.1 and a reverse proxy with TLS (http.public_url)"
        )
    if model.access.demo and (not is_loopback(http.host) or http.public_url is not None):
        raise ConfigurationError(
            f"{place(path, 'access', 'demo')}: everybody would be admin; it is for http.host 127.0.0.1 without public_url"
        )
    if http.public_url is not None and not encrypted:
        raise ConfigurationError(f"{place(path, 'http', 'public_url')}: it has to be https")


def _placed(base: Path, model: BaseModel, *names: str) -> BaseModel:
    """A section with its paths beside the file."""
    return model.model_copy(update={name: base / path for name in names if (path := getattr(model, name)) is not None})


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
