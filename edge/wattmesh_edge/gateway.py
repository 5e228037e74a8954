"""The composition root of a gateway: wires drivers, control, agents, outbox, uplink and reflex of one site together."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import resource
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import time as clock_time
from pathlib import Path

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import record_line
from wattmesh_a2a.control import Applied, Decision, Failed
from wattmesh_a2a.deadletters import DeadLetters
from wattmesh_a2a.dedupe import SqliteDedupe
from wattmesh_a2a.delivery import ACKNOWLEDGED, PEER_REQUESTS_PER_S, Delivery
from wattmesh_a2a.devices import AssetKind, Quality
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, MARKET_AGENT, Address, Envelope
from wattmesh_a2a.errors import ConfigurationError, ExpiredError, UnauthorisedError, UnavailableError, WattmeshError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import DemandResponseDispatch, DemandResponseEvent, DemandResponseOffer, FrequencyEvent
from wattmesh_a2a.messages import (
    Acknowledged,
    AssetSummary,
    Commitment,
    CommitmentList,
    CommitmentQuery,
    ConfigurationChange,
    ForecastIssued,
    GatewayStatus,
    MarketRules,
    Message,
    OrderBatch,
    OrderBatchResult,
    SiteAnnouncement,
    Strategy,
)
from wattmesh_a2a.plans import CoordinationRound, SitePlan
from wattmesh_a2a.signing import KeyRing, Signer
from wattmesh_a2a.tariff import slot_start_ns
from wattmesh_a2a.topics import Topics
from wattmesh_a2a.transports.mqtt import MqttTransport
from wattmesh_drivers.driver import Driver, DriverState
from wattmesh_drivers.factory import create_driver
from wattmesh_drivers.modbus.line import LinePool
from wattmesh_drivers.modbus.proxy import ModbusProxy

from wattmesh_edge import reflex as fast
from wattmesh_edge.agents.base import SLOT_NS, SLOT_S, Outlook, SiteAgent, stored_energy_wh
from wattmesh_edge.agents.consumer import ConsumerAgent
from wattmesh_edge.agents.flexible import FlexibleAgent, Need
from wattmesh_edge.agents.planner import Storage
from wattmesh_edge.agents.planner_community import answer_round, check_site_plan, view_of
from wattmesh_edge.agents.producer import ProducerAgent
from wattmesh_edge.config import DeviceModel, FrequencyModel, FrequencyResponseModel, FrequencySourceModel, Site
from wattmesh_edge.control import ControlCycle
from wattmesh_edge.flash import FLASH_TABLE, FlashWrites
from wattmesh_edge.history import History
from wattmesh_edge.image import ImageMaker, SiteImage
from wattmesh_edge.limits import BatteryLimits, SiteLimits
from wattmesh_edge.local import LocalServer
from wattmesh_edge.maintenance import Maintenance
from wattmesh_edge.memory import Memory, durably
from wattmesh_edge.metering import Metering
from wattmesh_edge.outbox import Outbox
from wattmesh_edge.panel import Panel, resident_bytes
from wattmesh_edge.reflex import sources
from wattmesh_edge.service import ServiceManager
from wattmesh_edge.sun import Plane
from wattmesh_edge.trace import KEEP_NS, DecisionTrace
from wattmesh_edge.uplink import Uplink
from wattmesh_edge.versions import Health, Trial, Versions

log = logging.getLogger(__name__)

SOFTWARE = "wattmesh 0.1.0"
_ORDER_AHEAD_SLOTS = 2
"""Orders are sent this many slots before delivery: late enough to know the load, early enough to be cleared."""
_STATUS_NS = 10 * NS_PER_S
_REPORT_NS = 3600 * NS_PER_S
_DRAIN_S = 15.0
_LEAVE_WITHIN_S, _LEAVE_AGAIN_S = 10.0, 0.5
"""How long a device that does not answer is tried to be left in its safe state."""
_LAST_CYCLE_S = 5.0
"""Real time that the last cycle has to end in."""
_ANSWER_S = 0.5
_START_S = 2.0
"""Real time that devices have to answer in before the site starts without them."""
_SOURCE_AGAIN_S = 10.0
"""Real time until a frequency source that was not there is asked for again."""
_AGENTS: Mapping[str, type[SiteAgent]] = {"producer": ProducerAgent, "consumer": ConsumerAgent}


class Gateway:
    """One site's gateway.

    Args:
        site: The checked site file.
        clock: Time of everything but I/O.
        versions: Of its configuration; none: it cannot be changed from afar.
        trial: Watches the version that is on trial.
    """

    def __init__(self, site: Site, clock: Clock, versions: Versions | None = None, trial: Trial | None = None) -> None:
        model = site.model
        self._versions = versions
        self._trial = trial
        self.changed = asyncio.Event()
        """Set when another version of the configuration is to be run."""
        self.last_health: Health | None = None
        """When the end began."""
        self.site = site
        self.site_id = model.site
        self._clock = clock
        site.state.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(site.state / "gateway.sqlite")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._tables()
        self._memory = Memory(self._db)
        self._lines = LinePool()
        self._proxies: list[ModbusProxy] = []
        self.drivers: dict[str, Driver] = {
            device.id: create_driver(
                device.id,
                site.templates[device.id],
                device.connection,
                clock,
                lines=self._lines,
                flash_writes=FlashWrites(self._db, device.id),
                rated_power_w=device.rated_power_w,
                rated_energy_wh=device.rated_energy_wh,
            )
            for device in model.devices
        }
        self.messenger = self._make_messenger()
        columns = [f"{name}.{point.id}" for name, driver in self.drivers.items() for point in driver.asset.points]
        self.outbox = Outbox(site.state / "outbox", self.site_id, self.messenger.session, columns)
        self.uplink = Uplink(self.outbox, self.messenger)
        self._maker = ImageMaker(
            self.drivers,
            site.grid_meter,
            model.control.period_s,
            backups=site.meters_of("backup"),
            load_meters=site.meters_of("load"),
            meter_lag_s=model.control.meter_lag_s,
        )
        self.metering = Metering(self.site_id, self.drivers, site.grid_meter, self._maker, self._db)
        self._trace = DecisionTrace(self._db)
        self._response_limits = self._battery_limits(with_response=False)
        self._batteries = self._battery_limits(with_response=True)
        self.outlook = self._make_outlook()
        self.agents = [
            _AGENTS[name](
                name,
                self.site_id,
                self.outlook,
                period_s=model.control.period_s,
                peak_limit_w=model.control.peak_limit_w,
            )
            for name in model.agents
        ]
        self._flexible = FlexibleAgent(
            tuple(
                Need(
                    device=need.device,
                    energy_wh=need.energy_wh,
                    power_w=need.power_w,
                    begins=clock_time.fromisoformat(need.begins),
                    ends=clock_time.fromisoformat(need.ends),
                )
                for need in model.flexible
            ),
            site.tariff,
            site.tariff.zone(),
            period_s=model.control.period_s,
            taken=self._load_taken(),
            planned=lambda device, utc_ns: (
                None if (plan := self.outlook.site_plan) is None else plan.load_w(device, utc_ns)
            ),
        )
        self._reflex: fast.Reflex | None = None
        self._reflexes: dict[str, fast.Reflex] = {}
        self._response_missing = False
        self._source_task: asyncio.Task[Mapping[str, object]] | None = None
        self._source_due_s = 0.0
        self._reflex_starts = 0
        self._scheduling_told = 0
        self.control = ControlCycle(
            self.drivers,
            self._maker,
            [*self.agents, self._flexible],
            {**self._batteries, **self._load_limits()},
            SiteLimits(
                import_limit_w=model.connection.import_limit_w,
                export_limit_w=model.connection.export_limit_w,
                phase_limit_w=model.connection.phase_limit_w,
            ),
            clock,
            period_s=model.control.period_s,
            record=self._record,
            traded_wh=lambda: self.metering.grid_wh,
            reflex=self._reflexes,
            response_limits=self._response_limits,
        )
        self._history = History(self._db)
        self._service = ServiceManager()
        self._maintenance = Maintenance(self.site_id, self.drivers, self._maker, self._planes(), self._db)
        self.panel = Panel(
            self.site_id,
            self.control,
            self.drivers,
            self.outbox,
            self._history,
            clock,
            period_s=model.control.period_s,
            totals=self._totals,
            connected=lambda: self._transport.connected,
            alarms=lambda: list(self._maintenance.alarms.values()),
        )
        self._local = LocalServer(self.panel.pages()) if model.local is not None else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ordered: set[int] = set()
        self._planned_slot = 0
        self._status_due_ns = 0
        self._report_due_ns = 0
        self._disk_failing = False
        self._began_ns = clock.utc_ns()
        self.counts = self._load_counts()
        self.counts["starts"] = self.counts.get("starts", 0) + 1
        self._frequency_events: list[dict[str, object]] = self._load_events()

    # -- building

    def _tables(self) -> None:
        with self._db:
            self._db.execute("CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS commitments (slot_ns INTEGER PRIMARY KEY, net_wh INTEGER, trades INTEGER)"
            )
            self._db.execute(FLASH_TABLE)
            self._db.execute("CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, data TEXT) WITHOUT ROWID")

    def _make_messenger(self) -> Delivery:
        model = self.site.model
        address = Address(model.org, model.site, GATEWAY_AGENT)
        transport = MqttTransport(
            model.messaging.broker,
            str(address),
            ca=model.messaging.ca,
            certificate=model.messaging.certificate,
            key=model.messaging.key,
        )
        messenger = Delivery(
            transport,
            address,
            self._clock,
            topics=Topics(prefix=model.messaging.prefix),
            keys=self._make_keys(),
            store=SqliteDedupe(self.site.state / "answers.sqlite"),
            dead=DeadLetters(self.site.state / "dead.sqlite"),
            peer_requests_per_s=PEER_REQUESTS_PER_S,
        )
        self._transport = transport
        messenger.on_request(Commitment, self._on_commitment)
        messenger.on_request(ForecastIssued, self._on_forecast, idempotent=True, latest_only=True)
        messenger.on_request(Strategy, self._on_strategy, idempotent=True, latest_only=True)
        messenger.on_request(SitePlan, self._on_site_plan, idempotent=True, latest_only=True)
        messenger.on_request(CoordinationRound, self._on_coordination, idempotent=True)
        messenger.on_request(DemandResponseEvent, self._on_dr_event)
        messenger.on_request(DemandResponseDispatch, self._on_dr_dispatch)
        messenger.on_request(ConfigurationChange, self._on_configuration)
        messenger.on_event(MarketRules, self._on_rules, source=f"{model.org}/{CLOUD_UNIT}/{MARKET_AGENT}")
        return messenger

    def _make_keys(self) -> Signer:
        """A key shared with the cloud, or the device's own with its certificate."""
        if self.site.signing_key is not None:
            return KeyRing.of_site(self.site_id, self.site.signing_key)
        from wattmesh_a2a.certificates import CertificateKeys  # an extra (pki): the gateway of a demo does without

        files = self.site.model.messaging
        assert files.certificate is not None
        assert files.key is not None
        assert files.ca is not None
        return CertificateKeys(files.certificate, files.key, files.ca, files.crl)

    def _battery_limits(self, *, with_response: bool) -> dict[str, BatteryLimits]:
        """Limits of each battery; ``with_response``: less the energy that is kept for the frequency response."""
        limits = {}
        for device in self.site.model.devices:
            template = self.site.templates[device.id]
            if template.kind is AssetKind.BATTERY and not template.monitor_only:
                energy = device.rated_energy_wh or 1.0
                out_wh, in_wh = self._kept_for_response(device.id) if with_response else (0.0, 0.0)
                limits[device.id] = BatteryLimits(
                    rated_power_w=device.rated_power_w or 0.0,
                    rated_energy_wh=device.rated_energy_wh or 0.0,
                    min_soc_percent=self.site.model.control.reserve_soc_percent + 100 * out_wh / energy,
                    max_soc_percent=100 - 100 * in_wh / energy,
                    safe_power_w=template.safe_state.get("active_power_w", 0.0),
                    ramp_w_per_s=device.ramp_w_per_s or math.inf,
                    idle_below_w=device.idle_below_w,
                    phase=device.phase,
                    health=device.health_percent / 100,
                )
        return limits

    def _load_limits(self) -> dict[str, BatteryLimits]:
        """Limits of each load that can be steered."""
        return {
            device.id: BatteryLimits(
                rated_power_w=device.rated_power_w or 0.0,
                rated_energy_wh=0.0,
                ramp_w_per_s=device.ramp_w_per_s or math.inf,
                idle_below_w=device.idle_below_w,
                phase=device.phase,
                stores=False,
            )
            for device in self.site.model.devices
            if (template := self.site.templates[device.id]).kind in {AssetKind.EV_CHARGER, AssetKind.LOAD}
            and "active_power_w" in template.controls
        }

    def _load_taken(self) -> dict[str, tuple[int, float]]:
        row = self._db.execute("SELECT value FROM state WHERE name = 'taken'").fetchone()
        return {name: (int(begun), float(wh)) for name, (begun, wh) in json.loads(row[0]).items()} if row else {}

    def _planes(self) -> dict[str, Plane]:
        """Where each inverter's modules look, as far as the site file says it."""
        return {
            device.id: Plane(
                latitude_deg=device.plane.latitude_deg,
                longitude_deg=device.plane.longitude_deg,
                tilt_deg=device.plane.tilt_deg,
                azimuth_deg=device.plane.azimuth_deg,
            )
            for device in self.site.model.devices
            if device.plane is not None
        }

    def _kept_for_response(self, battery: str) -> tuple[float, float]:
        """Energy that the response's profile has to find in a battery: to discharge, and to charge."""
        model, profile = self.site.model.frequency, self.site.profile
        if model is None or model.response is None or profile is None or model.response.device != battery:
            return 0.0, 0.0
        device = next(one for one in self.site.model.devices if one.id == battery)
        return profile.energy_wh(model.nominal_hz, model.response.power_w or device.rated_power_w or 0.0)

    def _make_outlook(self) -> Outlook:
        energy = sum(limits.rated_energy_wh * limits.max_soc_percent / 100 for limits in self._batteries.values())
        reserve = sum(limits.rated_energy_wh * limits.min_soc_percent / 100 for limits in self._batteries.values())
        storage = Storage(
            energy_wh=max(energy, 1.0),
            power_w=sum(limits.rated_power_w for limits in self._batteries.values()),
            reserve_wh=reserve,
        )
        market = self.site.model.market
        outlook = Outlook(tariff=self.site.tariff, storage=storage, trade=market is not None and market.trade)
        if market is not None:
            for slot, net in self._db.execute(
                "SELECT slot_ns, net_wh FROM commitments ORDER BY slot_ns DESC LIMIT 200"
            ):
                outlook.commitments[slot] = Commitment(
                    participant_id=self.site_id,
                    area_id=market.area,
                    slot_start_ns=slot,
                    slot_s=SLOT_S,
                    net_wh=net,
                    clearing_price_ticks=None,
                    trades=(),
                )
        row = self._db.execute("SELECT value FROM state WHERE name = 'profile'").fetchone()
        if row:
            outlook.profile = {int(slot): (load, pv) for slot, (load, pv) in json.loads(row[0]).items()}
        self._recall(outlook)
        return outlook

    def _recall(self, outlook: Outlook) -> None:
        """What was told before this start and still holds: a restart without the cloud goes on with it."""
        now = self._clock.utc_ns()
        for name, message in self._memory.recall("dispatch", now).items():
            if isinstance(message, DemandResponseDispatch):
                outlook.dispatches[name] = message
        for message in self._memory.recall("strategy", now).values():
            if isinstance(message, Strategy):
                outlook.strategy = message
        for message in self._memory.recall("site-plan", now).values():
            if isinstance(message, SitePlan):
                outlook.site_plan = message
        for message in self._memory.recall("forecast", now).values():
            if isinstance(message, ForecastIssued):
                outlook.forecasts.update({forecast.quantity: forecast for forecast in message.forecasts})
        for message in self._memory.recall("rules", now).values():
            if isinstance(message, MarketRules):
                outlook.rules = message

    # -- life cycle

    async def run(self, stop: asyncio.Event, ready: Path | None = None) -> None:
        """Work until ``stop`` is set, then leave the site safe and hand over what is held."""
        try:
            await self._connect_devices()
            await self.messenger.announce({"announcement": self._announcement()})
            await self.messenger.start()
            await self._start_local()
            if ready is not None:
                ready.touch()
            async with asyncio.TaskGroup() as group:
                control = group.create_task(self.control.run(), name="control")
                uplink = group.create_task(self._uplink_loop(), name="uplink")
                self._spawn(self._ask_commitments())
                await stop.wait()
                self.last_health = self.health()
                self.control.stop()  # the cycle that is under way ends: nothing is cut between a write and its readback
                await asyncio.wait({control}, timeout=_LAST_CYCLE_S)
                if not control.done():
                    log.error("the last cycle does not end; the site is left safe without it")
                    control.cancel()
                uplink.cancel()
        finally:  # also when something of ours failed: the site is left safe
            await self._end()

    async def _start_local(self) -> None:
        """The site's own page; a port that is taken costs the page, and never control."""
        model = self.site.model.local
        if self._local is None or model is None:
            return
        try:
            await self._local.start(model.host, model.port)
        except OSError as error:
            log.warning("the site shows no page at %s:%d: %s", model.host, model.port, error)
            return
        log.info("the site shows itself at http://%s:%d/", model.host, self._local.port)

    async def _connect_devices(self) -> None:
        """Safe state first. A device that is absent does not keep the others from working."""
        starting = {
            asyncio.create_task(self._connect_device(name, driver), name=f"connect {name}")
            for name, driver in self.drivers.items()
        }
        _, slow = await asyncio.wait(starting, timeout=2 * _START_S)
        for task in slow:  # the cycle tries them again, off to the side
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        for device in self.site.model.devices:
            if device.connection.proxy_port is not None:
                proxy = self._proxy_of(device)
                try:
                    await proxy.start(device.connection.proxy_host, device.connection.proxy_port)
                except ConfigurationError as error:
                    log.error("%s; the site goes on without it", error)
                    continue
                self._proxies.append(proxy)
        self._start_reflex()

    def _proxy_of(self, device: DeviceModel) -> ModbusProxy:
        template = self.site.templates[device.id]
        line = self._lines.of(device.connection.endpoint(template))
        assert line is not None, "its driver has taken it"
        return ModbusProxy(line)

    async def _connect_device(self, name: str, driver: Driver) -> None:
        """Try for a while; polls go on trying afterwards, and the control cycle makes what comes late safe before it is used."""
        deadline = time.monotonic() + _START_S
        while driver.state is DriverState.DISCONNECTED and time.monotonic() < deadline:
            if not await driver.poll():
                await asyncio.sleep(0.02)
        if driver.state is not DriverState.READY:
            log.warning("%s is not there yet; the site starts without it", name)
            return
        await self._make_safe(name, driver)

    async def _make_safe(self, name: str, driver: Driver) -> None:
        """The safe state of a device that was not there, or not reached, when the site started: once, and then control has it."""
        outcomes = await driver.apply_safe_state()
        for outcome in outcomes:
            log.info("%s: safe state: %s", name, outcome)
        self.control.was_made_safe(name)

    def _start_reflex(self) -> None:
        """Start listening as soon as the source is known; begin to respond when the battery's register is, too."""
        model = self.site.model.frequency
        if model is None or (self._reflex is not None and (self._reflex.responds or not self._response_missing)):
            return
        response = None
        was_missing, self._response_missing = self._response_missing, False
        if model.response is not None and self.site.profile is not None:
            response = self._response(model.response)
            self._response_missing = response is None
            if response is None and self._reflex is not None and was_missing:
                return  # listening already, and the battery is still away
        if self._reflex is not None:
            self._reflex.stop()
            self._take_frequency_events(last=True)
            self._reflex = None
        config = self._reflex_config(model, response)
        if config is None:
            return  # its device is away: the next cycle asks again
        self._reflex_starts += 1
        label = "" if self._reflex_starts == 1 else f"{self._reflex_starts}."
        self._reflex = fast.Reflex(config, traces=self.site.state / "events", label=label)
        if self._reflex.responds and model.response is not None:
            self._reflexes[model.response.device] = self._reflex
        else:
            log.warning("frequency is only watched: %s", self._reflex.why_watching)
        self._reflex.start()

    def _response(self, model: FrequencyResponseModel) -> fast.Response | None:
        """What the reflex may move; none while the battery's registers are not known."""
        assert self.site.profile is not None
        control = self.site.templates[model.device].controls["active_power_w"]
        endpoint = self._endpoint(model.device, str(control.reflex), write=True)
        if endpoint is None:
            return None
        watchdog = control.watchdog
        return fast.Response(
            endpoint=endpoint,
            rated_power_w=model.power_w or self._batteries[model.device].rated_power_w,
            profile=self.site.profile,
            minimum_interval_ms=control.minimum_interval_ms,
            limits_age_s=min(60.0, watchdog.seconds) if watchdog is not None else 60.0,
        )

    def _reflex_config(self, model: FrequencyModel, response: fast.Response | None) -> fast.ReflexConfig | None:
        source = model.source
        listened: fast.Endpoint | Mapping[str, object] | None
        voltage, refresh_ms = None, 0.0
        if source.device is None:
            listened = self._sought_source(source)
        elif not self._polled_by_reflex(source.device):
            listened, refresh_ms = sources.push_source(), self.site.model.control.period_s * 1000
        else:
            listened = self._endpoint(source.device, source.point, write=False)
            if source.voltage is not None:
                voltage = self._endpoint(source.device, source.voltage, write=False)
            refresh_ms = self.site.templates[source.device].connection.refresh_ms or 0.0
        if listened is None:
            return None
        return fast.ReflexConfig(
            site_id=self.site_id,
            nominal_hz=model.nominal_hz,
            source=listened,
            voltage=voltage,
            poll_ms=source.poll_ms,
            refresh_ms=refresh_ms,
            nominal_v=model.nominal_v or 0.0,
            rail_v=source.rail_v,
            m_class=source.m_class,
            band_hz=model.band_hz,
            rocof_hz_per_s=model.rocof_hz_per_s,
            voltage_band_pu=model.voltage_band_percent / 100,
            realtime=model.realtime,
            response=response,
        )

    def _sought_source(self, model: FrequencySourceModel) -> Mapping[str, object] | None:
        """A source that is no device of the site, found off the loop: a handshake or a large file must not hold up a cycle."""
        task = self._source_task
        if task is None:
            if time.monotonic() >= self._source_due_s:
                self._source_task = asyncio.get_running_loop().create_task(asyncio.to_thread(_other_source, model))
            return None
        if not task.done():
            return None
        self._source_task = None
        try:
            return task.result()
        except (UnavailableError, ConfigurationError) as error:
            if not self._source_due_s:
                log.warning("frequency is not measured: %s", error)
            self._source_due_s = time.monotonic() + _SOURCE_AGAIN_S
            return None

    def _polled_by_reflex(self, device: str) -> bool:
        """Whether the reflex reads the device's register by itself; else it gets what the driver reads in each cycle."""
        connection = next(one.connection for one in self.site.model.devices if one.id == device)
        template = self.drivers[device].template
        return connection.plain_tcp and template.protocol != "opcua" and not template.connection.single_client

    def _push_frequency(self) -> None:
        """A source that is no register: what the driver read in this cycle goes to the reflex."""
        model = self.site.model.frequency
        if self._reflex is None or model is None or model.source.device is None:
            return
        driver = self.drivers[model.source.device]
        if not self._polled_by_reflex(model.source.device):
            push_frequency(self._reflex, driver, model.source.point, model.source.voltage)

    def _endpoint(self, device: str, point: str, *, write: bool) -> fast.Endpoint | None:
        found = self.drivers[device].register_of(point)
        if found is None:
            return None
        return fast.Endpoint(
            host=found.host,
            port=found.port,
            unit=found.unit,
            function=found.write_function if write else found.function,
            address=found.address,
            type=found.type,
            word_order=found.word_order,
            scale=found.scale,
            sign=found.sign,
        )

    async def _leave(self, name: str, driver: Driver) -> None:
        """Safe state, then the device's own management, then goodbye; one that does not answer is tried for a while."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _LEAVE_WITHIN_S
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    outcomes = await driver.apply_safe_state()
                    failed = [outcome for outcome in outcomes if not isinstance(outcome, Applied)]
                    if not failed:
                        break
                    if not any(isinstance(outcome, Failed) and outcome.retryable for outcome in failed):
                        log.error("%s could not be left in its safe state: %s", name, failed[0])
                        break
                    await asyncio.sleep(_LEAVE_AGAIN_S)
                for outcome in await driver.release():
                    log.info("%s: given back to its own management: %s", name, outcome)
        except TimeoutError:
            log.error("%s could not be left in its safe state: it does not answer", name)
        except Exception:
            log.exception("%s could not be left in its safe state", name)
        finally:
            await driver.close()

    async def _end(self) -> None:
        """Safe state, everything on disk, everything handed over that can be within its time, then goodbye."""
        self._service.stopping()
        if self._reflex is not None:
            self._reflex.stop()
            self._take_frequency_events(last=True)
        self.outbox.seal()  # before anything that may take long: a second, harder signal loses nothing
        await asyncio.gather(*(self._leave(name, driver) for name, driver in self.drivers.items()))
        for proxy in self._proxies:
            await proxy.stop()
        if not await self.uplink.drain(_DRAIN_S if self._transport.connected else 0.0):
            log.warning("%d batches wait for the next start", self.outbox.waiting())
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._local is not None:
            await self._local.stop()
        self._history.flush()
        self._write_report()
        await self.messenger.stop()
        self.outbox.close()
        self._db.commit()
        self._db.close()
        self._service.close()

    async def _uplink_loop(self) -> None:
        """In real time, beside control: live batches first, the backlog behind them."""
        while True:
            try:
                await self.uplink.pump()
                self.outbox.bound()
            except sqlite3.Error as error:
                self._count("outbox_failures")
                log.debug("the outbox cannot be read now: %s", error)
            await asyncio.sleep(0.1)

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]  # a coroutine
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, WattmeshError):
            self._count("messages_failed")
            log.info("a message failed: %s", error)
        else:
            log.error("a task failed", exc_info=error)

    # -- each cycle

    def _record(self, image: SiteImage, decisions: Sequence[Decision], outcomes: Mapping[str, str]) -> None:
        """The end of a cycle. A disk that is full or broken costs the record, and never control."""
        self._judge()
        self._service.healthy(f"{self.site_id}: {len(decisions)} setpoints a cycle")
        try:
            self._keep(image, decisions, outcomes)
        except (OSError, sqlite3.Error) as error:
            self._count("record_failures")
            if not self._disk_failing:
                self._disk_failing = True
                log.error("nothing can be recorded (%s); control goes on", error)
            return
        if self._disk_failing:
            self._disk_failing = False
            log.warning("records can be kept again")

    def _keep(self, image: SiteImage, decisions: Sequence[Decision], outcomes: Mapping[str, str]) -> None:
        """Keep what was measured and decided, then do what is due."""
        drivers = self.drivers.values()
        self.outbox.add_row(image.time_ns, (d.values for d in drivers), (d.qualities for d in drivers))
        for decision in decisions:
            if self._trace.note(decision, outcomes[decision.asset_id]):
                self.outbox.add_record(record_line(decision))
        self._history.note(image)
        for alarm in self._maintenance.observe(image.time_ns, limited=self.control.curtailed):
            self.outbox.add_record(record_line(alarm))
            log.log(logging.INFO if alarm.cleared_ns else logging.WARNING, "%s", alarm.text)
        for interval in self.metering.update(image):
            self.outbox.add_record(record_line(interval))
            self.outlook.learn(interval)
            self._save_profile()
        self._start_reflex()
        self._push_frequency()
        self._take_frequency_events()
        self._plan(image)
        self._trace.commit()
        now = image.time_ns
        if now >= self._status_due_ns:
            self._status_due_ns = now + max(_STATUS_NS, 2 * round(self.site.model.control.period_s * NS_PER_S))
            self._spawn(self.messenger.emit(self._status(now)))
        if now >= self._report_due_ns:
            self._report_due_ns = now + _REPORT_NS
            self._write_report()

    def _take_frequency_events(self, *, last: bool = False) -> None:
        if self._reflex is None:
            return
        if self._reflex_starts != self._scheduling_told and (told := self._reflex.scheduling_told()) is not None:
            self._scheduling_told = self._reflex_starts
            if told:
                log.warning("%s", told)
        for event in self._reflex.events(self._clock.utc_ns(), self.messenger.session, last=last):
            self.outbox.add_record(record_line(event))
            if (alarm := fast.alarm_of(event)) is not None:
                self.outbox.add_record(record_line(alarm))
                log.log(logging.INFO if alarm.cleared_ns else logging.WARNING, "%s", alarm.text)
            self._note_event(event)

    def _note_event(self, event: FrequencyEvent) -> None:
        took = event.detection_to_write_ns
        row: dict[str, object] = {
            "id": event.id,
            "kind": str(event.kind),
            "start_ns": event.start_ns,
            "extreme_hz": event.extreme_frequency_hz,
            "response_w": event.response_w,
            "response_ms": None if took is None else took / 1e6,
        }
        self._frequency_events = [one for one in self._frequency_events if one["id"] != event.id] + [row]
        self._db.execute("INSERT OR REPLACE INTO events VALUES (?, ?)", (event.id, json.dumps(row)))

    def _plan(self, image: SiteImage) -> None:
        """Once a slot: value the battery, and send orders for the slot after next."""
        slot = slot_start_ns(image.time_ns, SLOT_S)
        if slot == self._planned_slot:
            return
        outlook = self.outlook
        outlook.forget_before(image.time_ns)
        if slot % (86_400 * NS_PER_S) == 0:
            self._trace.prune(image.time_ns)
            self._memory.prune(image.time_ns)
            self._history.prune(image.time_ns)
            self._db.execute("DELETE FROM commitments WHERE slot_ns < ?", (image.time_ns - KEEP_NS,))
        outlook.plan(image.time_ns, stored_energy_wh(image, outlook.storage))
        if outlook.value is None and self.outlook.forecasts:
            return  # the state of charge is not known yet: try in the next cycle
        self._planned_slot = slot
        if self._flexible.taken:
            taken = json.dumps(self._flexible.taken)
            self._db.execute("INSERT OR REPLACE INTO state VALUES ('taken', ?)", (taken,))
        wanted = slot + _ORDER_AHEAD_SLOTS * SLOT_NS
        index = (wanted - outlook.value.start_ns) // SLOT_NS if outlook.value is not None else -1
        rules, strategy = outlook.rules, outlook.strategy
        trades = outlook.trade and (strategy is None or strategy.trade)
        if not trades or rules is None or rules.halted or wanted in self._ordered:
            return
        if 0 <= index < len(outlook.grid_wh):
            self._ordered.add(wanted)
            self._ordered = {one for one in self._ordered if one >= slot}
            orders = tuple(order for agent in self.agents for order in agent.orders(wanted, outlook.grid_wh[index]))
            if orders:
                batch = OrderBatch(
                    participant_id=self.site_id, area_id=rules.area_id, slot_start_ns=wanted, orders=orders
                )
                self._spawn(self._send_orders(batch, wanted - rules.gate_close_s * NS_PER_S))

    async def _send_orders(self, batch: OrderBatch, expires_ns: int) -> None:
        to = Address(self.site.model.org, CLOUD_UNIT, MARKET_AGENT)
        self._count("orders_sent", len(batch.orders))
        try:
            answer = await self.messenger.request(to, batch, expires_ns=expires_ns)
        except ExpiredError:
            self._count("orders_expired", len(batch.orders))
            return
        if isinstance(answer, OrderBatchResult):
            for result in answer.results:
                self._count(f"orders_{result.status}")

    # -- messages

    def _on_rules(self, envelope: Envelope) -> None:
        rules = envelope.data
        market = self.site.model.market
        if isinstance(rules, MarketRules) and market is not None and rules.area_id == market.area:
            if rules != self.outlook.rules:  # it comes again and again: the disk is written for what is new
                self._memory.keep("rules", rules.area_id, rules, self._clock.utc_ns() + 86_400 * NS_PER_S)
            self.outlook.rules = rules

    async def _on_commitment(self, envelope: Envelope) -> Message:
        commitment = envelope.data
        assert isinstance(commitment, Commitment)
        self._keep_commitment(commitment)
        return ACKNOWLEDGED

    def _keep_commitment(self, commitment: Commitment) -> None:
        if commitment.participant_id != self.site_id:
            raise ConfigurationError(f"a commitment of {commitment.participant_id} came to {self.site_id}")
        with durably(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO commitments VALUES (?, ?, ?)",
                (commitment.slot_start_ns, commitment.net_wh, len(commitment.trades)),
            )
        self.outlook.commitments[commitment.slot_start_ns] = commitment

    async def _ask_commitments(self) -> None:
        """After a start: what was agreed while we were away."""
        market = self.site.model.market
        if market is None:
            return
        now = self._clock.utc_ns()
        query = CommitmentQuery(participant_id=self.site_id, from_ns=now - 86_400 * NS_PER_S)
        to = Address(self.site.model.org, CLOUD_UNIT, MARKET_AGENT)
        answer = await self.messenger.request(to, query, expires_ns=now + 86_400 * NS_PER_S)
        if isinstance(answer, CommitmentList):
            for commitment in answer.commitments:
                self._keep_commitment(commitment)

    async def _on_forecast(self, envelope: Envelope) -> Message:
        issued = envelope.data
        assert isinstance(issued, ForecastIssued)
        for forecast in issued.forecasts:
            held: Forecast | None = self.outlook.forecasts.get(forecast.quantity)
            if forecast.site_id == self.site_id and (held is None or forecast.issued_ns >= held.issued_ns):
                self.outlook.forecasts[forecast.quantity] = forecast
                ends_ns = forecast.start_ns + len(forecast.values) * forecast.slot_s * NS_PER_S
                self._memory.keep("forecast", forecast.quantity, ForecastIssued(forecasts=(forecast,)), ends_ns)
        return ACKNOWLEDGED

    async def _on_strategy(self, envelope: Envelope) -> Message:
        strategy = envelope.data
        assert isinstance(strategy, Strategy)
        if strategy.site_id == self.site_id:
            self.outlook.strategy = strategy
            self._memory.keep("strategy", self.site_id, strategy, strategy.expires_ns)
        return ACKNOWLEDGED

    async def _on_site_plan(self, envelope: Envelope) -> Message:
        plan = envelope.data
        assert isinstance(plan, SitePlan)
        check_site_plan(plan, self.site_id, self._clock.utc_ns())
        self._take_site_plan(plan)
        return ACKNOWLEDGED

    def _take_site_plan(self, plan: SitePlan) -> None:
        held = self.outlook.site_plan
        if held is None or plan.issued_ns >= held.issued_ns:
            self.outlook.site_plan = plan
            self._memory.keep("site-plan", self.site_id, plan, plan.expires_ns)

    async def _on_coordination(self, envelope: Envelope) -> Message:
        """Answer a community's round with nothing but the exchange that suits this site, and follow what was agreed."""
        wanted = envelope.data
        assert isinstance(wanted, CoordinationRound)
        image, outlook = self.control.image, self.outlook
        stored = stored_energy_wh(image, outlook.storage) if image is not None else None
        view = view_of(wanted, outlook.reserved(), stored, outlook.net_of, self.site.tariff, slot_s=SLOT_S)
        reply, plan = await asyncio.to_thread(answer_round, wanted, self.site_id, view, self._clock.utc_ns())
        if plan is not None:
            self._take_site_plan(plan)
        return reply

    async def _on_dr_event(self, envelope: Envelope) -> Message:
        event = envelope.data
        assert isinstance(event, DemandResponseEvent)
        image = self.control.image
        stored = stored_energy_wh(image, self.outlook.storage) if image is not None else None
        for agent in self.agents:
            if isinstance(agent, ConsumerAgent):
                return agent.offer(event, stored)
        return DemandResponseOffer(
            event_id=event.id, site_id=self.site_id, offered_w=0, price_ticks=event.price_ticks, baseline_w=0
        )

    async def _on_dr_dispatch(self, envelope: Envelope) -> Message:
        dispatch = envelope.data
        assert isinstance(dispatch, DemandResponseDispatch)
        if dispatch.site_id == self.site_id:
            self.outlook.dispatches[dispatch.event_id] = dispatch
            self._memory.keep("dispatch", dispatch.event_id, dispatch, dispatch.end_ns)
            self._count("dispatches")
        return ACKNOWLEDGED

    async def _on_configuration(self, envelope: Envelope) -> Message:
        change = envelope.data
        assert isinstance(change, ConfigurationChange)
        if envelope.source.unit != CLOUD_UNIT or change.site_id != self.site_id:
            raise UnauthorisedError(
                f"{envelope.source} may not configure {self.site_id} with a file of {change.site_id}"
            )
        if self._versions is None:
            raise ConfigurationError("this gateway keeps no versions")
        self._versions.propose(change.version, change.text)
        asyncio.get_running_loop().call_later(_ANSWER_S, self.changed.set)  # the answer goes out first
        return Acknowledged(detail=f"version {change.version} is tried")

    def health(self) -> Health:
        """How the site does, for a trial."""
        return Health(
            answering=frozenset(name for name, driver in self.drivers.items() if driver.state is DriverState.READY),
            healthy=self.panel.healthy(),
            agent_failures=self.control.counts["agent_failures"],
        )

    def _judge(self) -> None:
        """After each cycle of a version on trial: keep it, go back, or watch on."""
        if self._trial is None or self._versions is None or (verdict := self._trial.judge(self.health())) is None:
            return
        self._trial = None
        if verdict == "good":
            log.info("version %d of the configuration is good", self._versions.trial)
            self._versions.accept()
        else:
            self._versions.roll_back(verdict)
            self.changed.set()

    # -- reporting

    def _announcement(self) -> dict[str, object]:
        model = self.site.model
        announcement = SiteAnnouncement(
            site_id=self.site_id,
            gateway_id=str(self.messenger.address),
            session=self.messenger.session,
            started_ns=self._clock.utc_ns(),
            software=SOFTWARE,
            time_zone=model.time_zone,
            market_area=model.market.area if model.market else "",
            import_limit_w=model.connection.import_limit_w,
            export_limit_w=model.connection.export_limit_w,
            assets=tuple(
                AssetSummary(
                    id=device.id,
                    kind=self.site.templates[device.id].kind,
                    rated_power_w=device.rated_power_w,
                    rated_energy_wh=device.rated_energy_wh,
                    template=device.template,
                )
                for device in model.devices
            ),
            agents=model.agents,
            frequency_response=bool(self._reflexes),
            flexible=self._flexible.needs(),
        )
        line: dict[str, object] = json.loads(record_line(announcement))
        return line

    def _status(self, now_ns: int) -> GatewayStatus:
        snapshot = self._reflex.snapshot() if self._reflex is not None else None
        counters = self.outbox.counters()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        totals = self._totals()
        return GatewayStatus(
            site_id=self.site_id,
            session=self.messenger.session,
            time_ns=now_ns,
            cycles=totals["cycles"],
            cycle_overrun_max_ms=self.control.overrun_max_ns / 1e6,
            records_measured=sum(value for name, value in counters.items() if name.startswith("measured.")),
            batches_pending=self.outbox.waiting(),
            commands_sent=totals["commands_sent"],
            commands_applied=totals["commands_applied"],
            commands_expired=totals["commands_expired"],
            frequency_hz=snapshot.frequency_hz if snapshot else None,
            rocof_hz_per_s=snapshot.rocof_hz_per_s if snapshot else None,
            frequency_events=len(self._frequency_events),
            resident_mb=resident_bytes() / 1e6,
            cpu_s=usage.ru_utime + usage.ru_stime,
            plan_source="market" if self._in_market(now_ns) else self.outlook.followed(now_ns),
        )

    def _in_market(self, now_ns: int) -> bool:
        commitment = self.outlook.commitments.get(slot_start_ns(now_ns, SLOT_S))
        return commitment is not None and commitment.net_wh != 0

    def _totals(self) -> dict[str, int]:
        """Counts of this start and of all before."""
        counts = self.control.counts
        names = (
            "cycles",
            "commands_sent",
            "commands_applied",
            "commands_clamped",
            "commands_rejected",
            "commands_failed",
        )
        totals = {name: self.counts.get(name, 0) + counts[name] for name in names}
        expired = self.counts.get("commands_expired", 0) + counts["proposals_expired"]
        return {**totals, "commands_expired": expired + self.messenger.counters().get("expired", 0)}

    def report(self) -> dict[str, object]:
        """Everything the fleet's report takes from this gateway."""
        snapshot = self._reflex.snapshot() if self._reflex is not None else None
        row = self._db.execute("SELECT COUNT(*), COALESCE(SUM(trades), 0) FROM commitments").fetchone()
        commitments = dict(self._db.execute("SELECT slot_ns, net_wh FROM commitments").fetchall())
        return {
            "site": self.site_id,
            "records": self.outbox.counters(),
            "batches_pending": self.outbox.waiting(),
            "segment_torn_bytes": self.outbox.torn,
            "totals": self._totals(),
            "counts": dict(self.counts),
            "messages": dict(self.messenger.counters()),
            "cycle_overrun_max_ms": self.control.overrun_max_ns / 1e6,
            "cycle_max_ms": self.control.cycle_max_ns / 1e6,
            "frequency_events": self._frequency_events,
            "reflex": None
            if snapshot is None
            else {
                "responds": bool(self._reflexes),
                "why_watching": self._reflex.why_watching if self._reflex else None,
                "polls": snapshot.polls,
                "missed_deadlines": snapshot.missed_deadlines,
                "failures": snapshot.failures,
                "inhibited": snapshot.inhibited,
                "scheduling": snapshot.scheduling,
                "memory_locked": snapshot.memory_locked,
                "writes": snapshot.writes,
                "write_failures": snapshot.write_failures,
                "refresh_ms": snapshot.refresh_ms,
                "lateness_p50_ms": snapshot.lateness_p50_ms,
                "lateness_p99_ms": snapshot.lateness_p99_ms,
            },
            "commitments": {str(slot): net for slot, net in commitments.items()},
            "commitment_count": row[0],
            "trades": row[1],
        }

    def _write_report(self) -> None:
        totals = self._totals()
        self._db.execute("INSERT OR REPLACE INTO state VALUES ('counts', ?)", (json.dumps({**self.counts, **totals}),))
        self._db.commit()
        target = self.site.state / "report.json"
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(self.report()), encoding="ascii")
        draft.replace(target)

    def _save_profile(self) -> None:
        self._db.execute("INSERT OR REPLACE INTO state VALUES ('profile', ?)", (json.dumps(self.outlook.profile),))

    def _load_counts(self) -> dict[str, int]:
        row = self._db.execute("SELECT value FROM state WHERE name = 'counts'").fetchone()
        return {name: int(value) for name, value in json.loads(row[0]).items()} if row else {}

    def _load_events(self) -> list[dict[str, object]]:
        return [json.loads(data) for (data,) in self._db.execute("SELECT data FROM events ORDER BY id")]

    def _count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by


async def run_gateway(
    site: Site, clock: Clock, stop: asyncio.Event, ready: Path | None = None, versions: Versions | None = None
) -> None:
    """Build and run a gateway until ``stop``; with ``versions`` anew with each version of its configuration."""
    before: Health | None = None
    while True:
        began = time.monotonic()
        trial = Trial(before) if versions is not None and versions.trial else None
        gateway = Gateway(site, clock, versions, trial)
        log.info("%s: composed in %.2f s", site.model.site, time.monotonic() - began)
        ended = asyncio.Event()
        waiting = [asyncio.create_task(event.wait()) for event in (stop, gateway.changed)]
        watching = asyncio.create_task(_first(waiting, ended))
        try:
            await gateway.run(ended, ready)
        finally:
            for task in (*waiting, watching):
                task.cancel()
            await asyncio.gather(*waiting, watching, return_exceptions=True)
        if versions is None:
            return
        if stop.is_set():
            versions.pause()
            return
        before = before if trial is not None else gateway.last_health
        site = versions.load()


async def _first(waiting: Sequence[asyncio.Task[bool]], ended: asyncio.Event) -> None:
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    ended.set()


def _other_source(model: FrequencySourceModel) -> Mapping[str, object]:
    """A source that is no device of the site."""
    rate, phases = model.rate_hz or 0.0, model.phases
    if model.udp is not None:
        return sources.udp_source(model.udp, rate_hz=rate, phases=phases)
    if model.pmu is not None:
        return sources.pmu_source(model.pmu, id_code=model.id_code)
    if model.adc is not None:
        return sources.device_source(
            model.adc, rate_hz=rate, phases=phases, bits=model.bits, shift=model.shift, scale=model.scale,
            offset=model.offset,
        )  # fmt: skip
    assert model.file is not None
    return sources.file_source(model.file, rate_hz=model.rate_hz, columns=model.columns, scale=model.scale)


def push_frequency(reflex: fast.Reflex, driver: Driver, point: str, voltage: str | None) -> None:
    """What a driver read in this cycle, to a reflex that has no register to poll; nothing where it is not good."""
    frequency = _value_of(driver, point)
    if frequency is not None:
        reflex.push(frequency, _value_of(driver, voltage))


def _value_of(driver: Driver, point: str | None) -> float | None:
    """What a driver read of a point in this cycle; none where it is not good."""
    index = next((i for i, one in enumerate(driver.asset.points) if one.id == point), None)
    if index is None or driver.qualities[index] != Quality.GOOD:
        return None
    return driver.values[index]
