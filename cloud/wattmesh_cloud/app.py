"""The composition root of the cloud: one process with ingest, market, forecasts, grid, strategies, API and console."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import uvicorn
from wattmesh_a2a import tracing
from wattmesh_a2a.cards import AgentRegistry
from wattmesh_a2a.clock import NS_PER_S, Clock, SystemClock
from wattmesh_a2a.codec import message_from_json
from wattmesh_a2a.deadletters import DeadLetters
from wattmesh_a2a.dedupe import SqliteDedupe
from wattmesh_a2a.delivery import PEER_REQUESTS_PER_S, Delivery
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, INGEST_AGENT, Address, Envelope
from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, UnavailableError
from wattmesh_a2a.grid import GridStatus
from wattmesh_a2a.messages import GatewayStatus, Message
from wattmesh_a2a.transports.mqtt import MqttTransport
from wattmesh_a2a.transports.publisher import Publisher

from wattmesh_cloud.access.commands import Commands
from wattmesh_cloud.access.config import AccessModel
from wattmesh_cloud.access.door import Access
from wattmesh_cloud.access.jobs import Jobs
from wattmesh_cloud.access.model import Tenants
from wattmesh_cloud.access.oidc import Oidc, read_secret
from wattmesh_cloud.access.store import AccessStore
from wattmesh_cloud.agents.looks import Sources
from wattmesh_cloud.agents.models import reasoner, remote_memory
from wattmesh_cloud.agents.service import AgentsService
from wattmesh_cloud.agents.toolbox import Toolbox
from wattmesh_cloud.api import PREFIX, Services, create_api
from wattmesh_cloud.api.system import metrics_text
from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.config import CloudConfig
from wattmesh_cloud.emf import EmfLog
from wattmesh_cloud.forecasting.observations import observed
from wattmesh_cloud.forecasting.providers import desk_of, place_of
from wattmesh_cloud.forecasting.service import ForecastingService
from wattmesh_cloud.frequency_live import FrequencyLive
from wattmesh_cloud.grid.measured import measured
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.homeassistant import HomeAssistant, HomeAssistantModel
from wattmesh_cloud.ingest import Ingest
from wattmesh_cloud.keys import cloud_keys
from wattmesh_cloud.lab import LabClient
from wattmesh_cloud.lake import Lake
from wattmesh_cloud.live import LiveView
from wattmesh_cloud.market.areas import Markets
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.replica import Standby
from wattmesh_cloud.market.risk import SiteState
from wattmesh_cloud.market.telemetry import site_state
from wattmesh_cloud.notifications.service import Notifications
from wattmesh_cloud.observer import SiteObserver
from wattmesh_cloud.reports.service import ReportService
from wattmesh_cloud.store.dead import DeadLetters as DeadFrames
from wattmesh_cloud.store.sqlite import SqliteStore
from wattmesh_cloud.tools.base import Context
from wattmesh_cloud.tools.catalogue import MarketActions
from wattmesh_cloud.view import CloudView

if TYPE_CHECKING:
    from wattmesh_cloud.planning.coordination import CoordinationService
    from wattmesh_cloud.planning.service import PlanningService


class Service(Protocol):
    """What every part of the fleet side is."""

    def register(self) -> None:
        """Say which requests are taken."""
        ...

    def on_record(self, site: str, message: Message) -> None:
        """Learn from what a site has recorded."""
        ...

    async def run(self) -> None:
        """Work for ever."""
        ...

    async def finish(self) -> None:
        """End what is under way."""
        ...


log = logging.getLogger(__name__)

_REPORT_NS = 3600 * NS_PER_S
_LAKE_AFTER_NS = 600 * NS_PER_S
"""A day goes to the lake this long after its end; what comes later, with the next round."""


class Cloud:
    """Everything wired; nothing runs before :meth:`run`.

    Args:
        config: The checked file.
        clock: Time of everything but I/O.
        warm: Standbys of market areas that go on as writers.
    """

    def __init__(
        self, config: CloudConfig, clock: Clock, *, warm: Mapping[str, Standby] = MappingProxyType({})
    ) -> None:
        model, state, org = config.model, config.state, config.model.org
        state.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._clock = clock
        self.store = SqliteStore(state / "store.sqlite")
        self.lake = Lake(state / "lake")
        address = Address(org, CLOUD_UNIT, INGEST_AGENT)
        transport = MqttTransport(model.broker, str(address), ca=model.ca, certificate=model.certificate, key=model.key)
        self.forecasting_ids = (
            "market-supervisor", "forecasting", "grid-optimisation", "producer", "consumer", "planning",
            "coordination",
        )  # fmt: skip
        self._signer = cloud_keys(config)
        self.messenger = Delivery(
            transport,
            address,
            clock,
            keys=self._signer,
            store=SqliteDedupe(state / "answers.sqlite"),
            dead=DeadLetters(state / "dead.sqlite"),
            figures=True,
            peer_requests_per_s=PEER_REQUESTS_PER_S,
            serve=[Address(org, CLOUD_UNIT, name) for name in self.forecasting_ids],
        )
        messenger = self.messenger
        self.agents = AgentRegistry(messenger, clock)
        self.dead = DeadFrames(state / "dead_frames.sqlite")
        self.ingest = Ingest(self.store, messenger, clock, org, dead=self.dead)
        self.markets = Markets(
            (model.market, *model.areas), self.store, messenger, clock, state, org, links=model.links, warm=warm
        )
        self.market = self.markets.first
        self.forecasting = ForecastingService(
            model.forecasting,
            self.store,
            messenger,
            clock,
            state,
            org,
            history=config.history,
            zone=model.market.tariff.tariff(model.market.time_zone).zone(),
            weather=None if (weather := model.forecasting.weather) is None else desk_of(weather, self.store),
            places=lambda site: None if weather is None else place_of(weather, site),
            observations=self._observations,
        )
        self.grid = GridService(
            model.grid,
            self.store,
            messenger,
            clock,
            state,
            org,
            forecasts=lambda: self.forecasting.latest,
            pay=self.markets.settle_flexibility,
            measurements=lambda: measured(self.live),
            zone=model.market.tariff.tariff(model.market.time_zone).zone(),
        )
        self.live = LiveView()
        self.audit = AuditLog(state / "audit.log")
        announcements: dict[str, Mapping[str, Any]] = {}
        online: set[str] = set()
        sources = Sources(
            market_config=model.market,
            forecasts=lambda: self.forecasting.latest,
            market=self.market,
            grid=self.grid,
            forecasting=self.forecasting,
            live=self.live,
            announcements=announcements,
            online=online,
        )
        context = Context(store=self.store, clock=clock, area=model.market.area, audit=self.audit)
        toolbox = Toolbox(context)  # of models: reading alone, there is no action in it
        self.strategy = AgentsService(
            model.agents, sources, self.store, messenger, clock, state, org, audit=self.audit,
            reasoner=reasoner(model.agents.model, toolbox), remote=remote_memory(model.agents),
        )  # fmt: skip
        toolbox.consult = self.strategy.conversations.consult_tool
        self.planning = self._planning()
        self.coordination: CoordinationService | None = None
        self.services: tuple[Service, ...] = (
            self.markets,
            self.forecasting,
            self.grid,
            self.strategy,
            *self.planning,
            *self._coordination(),
            *self._openadr(),
        )
        self.view = CloudView(
            clock=clock,
            store=self.store,
            live=self.live,
            ingest=self.ingest,
            market=self.market,
            markets=self.markets,
            forecasting=self.forecasting,
            grid=self.grid,
            strategy=self.strategy,
            registry=self.agents,
            announcements=announcements,
            online=online,
            plans=self.planning[0].delivered if self.planning else {},
            unplanned=self.planning[0].unplanned if self.planning else {},
        )
        self.access = open_access(config, self.audit, clock)
        self.commands = Commands(state / "commands.sqlite", self.audit, clock, SystemClock())
        self.jobs = Jobs(state / "jobs", clock)
        self.notifications = Notifications(
            model.notifications, state / "notifications.sqlite", SystemClock(), model.http.public_url
        )
        self.frequency = FrequencyLive()
        self.reports = ReportService(
            model.reports, self.view, state / "reports", self.access.store.tenants.sites, clock
        )
        self.observer = SiteObserver(messenger, clock, org, self.frequency, lambda: self.view.online)
        self.tools = Context(
            store=self.store,
            clock=clock,
            area=model.market.area,
            audit=self.audit,
            actions=MarketActions(self.markets),
        )
        self._wire()

    def _openadr(self) -> tuple[Service, ...]:
        """Our virtual end node, where a virtual top node is configured."""
        grid = self._config.model.grid
        if grid.openadr is None:
            return ()
        from wattmesh_cloud.openadr.client import VenClient
        from wattmesh_cloud.openadr.service import OpenAdrService

        client = VenClient(grid.openadr, self._clock)
        price = grid.demand_response.price
        service = OpenAdrService(grid.openadr, client, self.grid, self._clock, self._config.state, price=price)
        self.grid.further["openadr"] = service.snapshot
        return (service,)

    def _wire(self) -> None:
        if not self._config.model.ingest.workers:
            self.ingest.register()
        self.ingest.on_columns(self.live.on_columns)
        self.ingest.on_record(self.view.alarms.on_record)
        self.view.alarms.listen(self.notifications.on_alarm)
        self.observer.register()
        for service in self.services:
            service.register()
        for service in self.services:
            self.ingest.on_record(service.on_record)
        for market in self.markets.areas.values():
            market.guard("grid", partial(self._grid_emergency, market.config))
            market.guard("forecast", partial(self._old_forecasts, market.config))
            market.watch_sites(self._site_states)
        self.messenger.on_refusal(self.markets.on_refusal, as_agent=self.market.address)
        self.messenger.on_presence(self._on_presence)
        self.messenger.on_event(GatewayStatus, self._on_status)

    def _planning(self) -> tuple[PlanningService, ...]:
        """The planner, where the file wants one and its solver is installed; without it gateways plan alone."""
        model = self._config.model
        if not model.planning.enabled:
            return ()
        try:
            from wattmesh_cloud.planning.service import PlanningService
        except ModuleNotFoundError as error:
            if error.name != "highspy":  # anything else that is missing is a fault of ours and has to be seen
                raise
            log.warning("no plans from the cloud: pip install 'wattmesh[optimise]'; gateways plan by themselves")
            return ()
        return (
            PlanningService(
                model.planning,
                self.messenger,
                self._clock,
                model.org,
                tariff=model.market.tariff.tariff(model.market.time_zone),
                live=self.live,
                announcements=lambda: self.view.announcements,
                forecasts=lambda: self.forecasting.latest,
                reasons=self.forecasting.reasons,
                commitments=self._coming_commitments,
                strategies=lambda: self.strategy.effects.latest,
            ),
        )

    def _coordination(self) -> tuple[CoordinationService, ...]:
        """The community's agreement, where the file names members."""
        config = self._config.model.planning.coordination
        if config is None or not self._config.model.planning.enabled:
            return ()
        from wattmesh_cloud.planning.coordination import CoordinationService

        def exchange_w(site: str) -> float | None:
            live = self.live.sites.get(site)
            return None if live is None else live.flows.get("grid_w")

        self.coordination = CoordinationService(
            config, self.messenger, self._clock, self._config.model.org, exchange_w=exchange_w
        )
        return (self.coordination,)

    def _observations(self, slot_ns: int) -> Mapping[tuple[str, str], float]:
        """Price, flexibility and frequency of a quarter hour that has just ended."""
        slot = self.market.engine.slots.get(slot_ns)
        return observed(
            slot_ns,
            area=self._config.model.market.area,
            trades=slot.trades if slot is not None else (),
            live=self.live,
            announcements=self.view.announcements,
            nominal_hz=self._config.model.grid.nominal_hz,
        )

    def _coming_commitments(self, site: str, now_ns: int) -> dict[int, int]:
        """A site's net of every cleared slot that is not over."""
        market = self.markets.of_participant(site)
        engine, length_ns = market.engine, market.config.slot_s * NS_PER_S
        return {
            slot.start_ns: engine.commitment(site, slot.start_ns).net_wh
            for slot in engine.slots.values()
            if slot.start_ns + length_ns > now_ns and site in slot.told
        }

    def _grid_emergency(self, area: MarketConfig, now_ns: int) -> str | None:
        """The market's guard against trading into a grid that is in trouble."""
        if area.halt_in_grid_emergency and self.grid.status is GridStatus.EMERGENCY:
            return f"grid emergency: {self.grid.status_reason}"
        return None

    def _old_forecasts(self, area: MarketConfig, now_ns: int) -> str | None:
        """The market's guard against trading on forecasts that nobody renews."""
        limit_s, names = area.halt_without_forecast_s, {one.id for one in area.participants}
        if limit_s is None:
            return None
        issued = [
            one.issued_ns for name, site in self.forecasting.latest.items() if name in names for one in site.values()
        ]
        if issued and now_ns - max(issued) <= limit_s * NS_PER_S:
            return None
        return f"no forecast in {limit_s} s"

    def _site_states(self) -> dict[str, SiteState]:
        """What the sites could deliver, of those that are known well enough."""
        states = {
            site: site_state(announcement, self.live.sites[site])
            for site, announcement in self.view.announcements.items()
            if site in self.live.sites
        }
        return {site: state for site, state in states.items() if state is not None}

    def _on_presence(self, address: Address, card: Mapping[str, object] | None) -> None:
        if address.agent != GATEWAY_AGENT:
            return
        if card is None:
            self.view.on_presence(address.unit, None)
            return
        announcement = card.get("announcement")
        if not isinstance(announcement, dict):
            return
        try:
            message_from_json(str(announcement.get("type")), announcement.get("data"))
        except InvalidMessageError as error:
            log.warning("the card of %s is not understood: %s", address, error)
            return
        self.view.on_presence(address.unit, announcement["data"])

    def _on_status(self, envelope: Envelope) -> None:
        status = envelope.data
        self.agents.seen(envelope.source)
        if isinstance(status, GatewayStatus) and status.site_id == envelope.source.unit:
            self.view.health[status.site_id] = status

    # -- life cycle

    async def run(self, stop: asyncio.Event, ready: Path | None = None) -> None:
        """Work until ``stop`` is set; then settle, flush, report."""
        if (url := self._config.model.observability.otlp) is not None:
            with _tracing_to(url):
                await self._work(stop, ready)
        else:
            await self._work(stop, ready)

    async def _work(self, stop: asyncio.Event, ready: Path | None) -> None:
        self.audit.write(self._clock.utc_ns(), "cloud", "process.start", "done")
        await asyncio.to_thread(self.view.alarms.restore, self.store)
        http = _bound_socket(self._config.model.http.host, self._config.model.http.port)
        server = self._http_server()
        await self.messenger.announce({"name": "wattmesh cloud", "agents": list(self.forecasting_ids)})
        await self.messenger.start()
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve(sockets=[http]), name="http")
            running = [group.create_task(service.run(), name=type(service).__name__) for service in self.services]
            running.append(group.create_task(self.jobs.run(), name="jobs"))
            running.append(group.create_task(self.observer.run(), name="observer"))
            running.append(group.create_task(self.notifications.run(), name="notifications"))
            for owner in self._config.model.home_assistant:
                running.append(group.create_task(home_assistant(owner, self.view).run(), name="home assistant"))
            if self._config.model.reports.schedule:
                running.append(group.create_task(self.reports.run(), name="reports"))
            if (queue := self._config.model.action_queue) is not None:
                running.append(group.create_task(self._actions(queue), name="actions"))
            if (log_file := self._config.model.observability.emf) is not None:
                running.append(group.create_task(self._tell_cloudwatch(log_file), name="figures"))
            running.append(group.create_task(self._taking(), name="ingest"))
            running.append(group.create_task(self._housekeeping(), name="housekeeping"))
            faces = [server, *(one for one in (self._mcp_server(), self._a2a_server()) if one is not None)]
            for face in faces[1:]:
                listener = _bound_socket(face.config.host, face.config.port, "tools or A2A")
                group.create_task(face.serve(sockets=[listener]), name="face")
            while not server.started and not serving.done():
                await asyncio.sleep(0.02)
            if ready is not None:
                ready.touch()
            await stop.wait()
            await self.ingest.settle(10.0)
            for task in running[:-2]:
                task.cancel()
            for service in self.services[::-1]:  # the grid's payments go to the market's journal: the market ends last
                await service.finish()
            await self.ingest.settle(10.0)
            for task in running:
                task.cancel()
            for face in faces:
                face.should_exit = True
        await self.ingest.stop()
        self._write_report()
        await self.messenger.stop()
        self.markets.close()
        self.strategy.close()
        self.audit.write(self._clock.utc_ns(), "cloud", "process.stop", "done")
        self.commands.close()
        self.notifications.close()
        self.access.store.close()
        self.audit.close()
        self.dead.close()
        self.store.close()

    async def _actions(self, url: str) -> None:
        """What the action function on AWS has accepted."""
        from wattmesh_cloud.aws.actions import ActionQueue

        await ActionQueue(url, MarketActions(self.markets), self.audit, self._clock).run()

    async def _tell_cloudwatch(self, path: Path) -> None:
        """The figures of ``/metrics`` once a minute, for CloudWatch's agent."""
        out = EmfLog(path, self._config.model.observability.namespace)
        with self._clock.runner():
            while True:
                await self._clock.sleep_until_ns(self._clock.monotonic_ns() + 60 * NS_PER_S)
                try:
                    await asyncio.to_thread(out.write, metrics_text(self.view), self._clock.utc_ns())
                except OSError as error:
                    log.warning("%s: figures cannot be written: %s", path, error)

    async def _taking(self) -> None:
        """Telemetry: our own taking, or what the workers have stored."""
        if self._config.model.ingest.workers:
            await self.ingest.follow()
        else:
            await self.ingest.run()

    def _http_server(self) -> uvicorn.Server:
        http = self._config.model.http
        app = create_api(self._services())
        try:
            from wattmesh_cloud.console import attach
        except ModuleNotFoundError as error:
            if error.name != "jinja2":  # anything else that is missing is a fault of ours and has to be seen
                raise
            log.warning("the console is not installed (pip install 'wattmesh[console]'); the API runs without it")
        else:
            attach(app)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2, server_header=False,
            ssl_certfile=http.certificate, ssl_keyfile=http.key, proxy_headers=http.public_url is not None,
            limit_concurrency=2000, h11_max_incomplete_event_size=32_768,
        )  # fmt: skip
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # signals are the command's
        return server

    def _services(self) -> Services:
        """What the API stands on."""
        model = self._config.model
        oidc = model.access.oidc
        base = model.http.public_url or _own_url(self._config)
        secret = read_secret(oidc.client_secret) if oidc is not None and oidc.client_secret is not None else None
        return Services(
            view=self.view,
            access=self.access,
            commands=self.commands,
            jobs=self.jobs,
            audit=self._config.state / "audit.log",
            nominal_hz=model.grid.nominal_hz,
            oidc=None if oidc is None else Oidc(oidc, secret, f"{base}{PREFIX}/oidc/callback"),
            longest_s=round(model.access.longest_h * 3600),
            frequency=self.frequency,
            observer=self.observer,
            reports=self.reports,
            lab=None if model.lab is None else LabClient(model.lab.port, model.lab.secret),
            facts=self._facts,
        )

    def _facts(self) -> dict[str, Any]:
        """What only this place knows of the process."""
        return {
            "messages": dict(self.messenger.counters()),
            "lake_files": len(self.lake.files()),
            "dead_letters": sum(self.dead.counts().values()),
            "public_url": self._config.model.http.public_url,
            "openadr": None if (vtn := self._config.model.grid.openadr) is None else f"client of {vtn.url}",
        }

    def _mcp_server(self) -> uvicorn.Server | None:
        """The tools by MCP where the file asks for it."""
        tools = self._config.model.tools
        if tools is None:
            return None
        try:
            from wattmesh_cloud.tools.mcp_server import Tokens, build_server, http_app
        except ModuleNotFoundError as error:
            if error.name != "mcp":
                raise
            raise ConfigurationError("the tools need the MCP SDK: pip install 'wattmesh[mcp]'") from error
        tokens = Tokens(tools.tokens)
        app = http_app(build_server(self.tools, tokens.current, tokens=tokens, url=f"http://127.0.0.1:{tools.port}"))
        config = uvicorn.Config(
            app, host="127.0.0.1", port=tools.port, log_level="warning", access_log=False, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # signals are the command's
        return server

    def _a2a_server(self) -> uvicorn.Server | None:
        """Agents by A2A over HTTP where the file asks for it."""
        if self._config.model.a2a is None:
            return None
        try:
            from wattmesh_cloud.a2a_http.access import ApiTokens
            from wattmesh_cloud.a2a_http.serve import a2a_server
        except ModuleNotFoundError as error:
            if error.name not in {"a2a", "google", "sse_starlette"}:
                raise
            raise ConfigurationError("A2A over HTTP needs the A2A SDK: pip install 'wattmesh[a2a]'") from error
        return a2a_server(
            self._config.model.a2a,
            org=self._config.model.org,
            state=self._config.state,
            messenger=self.messenger,
            registry=self.agents,
            clock=self._clock,
            audit=self.audit,
            keys=self._signer,
            crl=self._config.model.crl,
            authenticator=ApiTokens(self.access.store.of_token),
        )

    async def _housekeeping(self) -> None:
        """The report once an hour; every 5 min what waits for the lake, roll-ups, retention and dead letters marked for it."""
        due = 0
        with self._clock.runner():
            while True:
                now = self._clock.utc_ns()
                if now >= due:
                    due = now - now % _REPORT_NS + _REPORT_NS
                    self._write_report()
                try:
                    await asyncio.to_thread(self._maintain, now)
                    await self.ingest.replay()
                    await self.ingest.recall(self.view.online)
                except (UnavailableError, OSError, ValueError, sqlite3.Error) as error:
                    # Due again the next time; nothing measured is at stake, and the fleet's other services go on.
                    log.error("lake, roll-ups or dead letters are behind: %s", error)
                await self._clock.sleep_until_ns(self._clock.monotonic_ns() + 300 * NS_PER_S)

    def _maintain(self, now_ns: int) -> None:
        """The lake first: what it has, the retention may take from the store."""
        self.lake.catch_up(self.store, now_ns - _LAKE_AFTER_NS)
        self.store.maintain(now_ns)

    # -- reporting

    def report(self) -> dict[str, Any]:
        """Everything the fleet's report takes from the cloud."""
        stored: dict[str, dict[str, dict[str, int]]] = {}
        for site, stream in self.store.streams():
            batches, records = self.store.sequences(site, stream)
            stored.setdefault(site, {})[stream] = {"batches": batches, "records": records}
        return {
            "stored": stored,
            "ingest": dict(self.ingest.counts),
            "messages": dict(self.messenger.counters()),
            "market": self.market.snapshot(hashed=True),
            "areas": {
                name: market.snapshot(hashed=True)
                for name, market in self.markets.areas.items()
                if market is not self.market
            },
            "trades": sorted(name for market in self.markets.areas.values() for name in market.engine.trades),
            "commitments": {
                name: slots for market in self.markets.areas.values() for name, slots in market.commitments().items()
            },
            "forecasting": self.forecasting.snapshot(),
            "grid": self.grid.snapshot(),
            "strategy": self.strategy.snapshot(),
            "planning": self.planning[0].snapshot() if self.planning else {},
            "coordination": self.coordination.snapshot() if self.coordination is not None else {},
            "lake": self.lake.files(),
            "audit": self.audit.anchor(),
        }

    def _write_report(self) -> None:
        target = self._config.state / "report.json"
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(self.report()), encoding="utf-8")
        draft.replace(target)


def open_access(config: CloudConfig, audit: AuditLog, clock: Clock) -> Access:
    """The door of a cloud's file."""
    model = config.model
    access: AccessModel = model.access
    names = {"127.0.0.1", "localhost", "::1", model.http.host}
    if model.http.public_url is not None:
        names.add(urlsplit(model.http.public_url).hostname or "")
    return Access(
        store=AccessStore(
            config.state / "access.sqlite",
            SystemClock(),
            Tenants(sites={name: frozenset(sites) for name, sites in access.tenants.items()}),
            idle_s=access.idle_min * 60,
            longest_s=access.longest_h * 3600,
        ),
        audit=audit,
        fleet=clock,
        demo=access.demo,
        secure=_own_url(config).startswith("https://") or (model.http.public_url or "").startswith("https://"),
        hosts=frozenset(names),
        requests_per_s=access.requests_per_s,
    )


def home_assistant(model: HomeAssistantModel, view: CloudView) -> HomeAssistant:
    """A site's way to its owner's broker."""
    password = None if model.password is None else read_secret(model.password)
    publisher = Publisher(model.broker, f"wattmesh-{model.site}", user=model.user, password=password, ca=model.ca)
    return HomeAssistant(model, view, publisher)


def _own_url(config: CloudConfig) -> str:
    http = config.model.http
    return f"{'http' if http.certificate is None else 'https'}://{http.host}:{http.port}"


@contextlib.contextmanager
def _tracing_to(url: str) -> Iterator[None]:
    """Spans of this process go to a collector."""
    try:
        from wattmesh_cloud.traces import exporting_to

        spans = exporting_to(url)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigurationError("observability.otlp needs OpenTelemetry: pip install 'wattmesh[otel]'") from error
    tracing.record_with(spans)
    try:
        yield
    finally:
        tracing.record_with(None)
        spans.close()


def _bound_socket(host: str, port: int, what: str = "API and console") -> socket.socket:
    """A listening socket; raises :class:`ConfigurationError` in one line where the port is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"port {port} on {host} cannot be used for {what} ({error.strerror}); "
            "end what uses it or choose another (http.port, tools.port, a2a.port; demo: --http-port)"
        ) from error
    return listener
