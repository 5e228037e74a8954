"""OPC UA devices: one Read of all nodes a poll, or a subscription; typed writes; every node accounted for after each connect."""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Unpack

from asyncua import ua
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers.driver import BaseDriver, BaseOptions, RegisterLocation
from wattmesh_drivers.opcua.nodes import browse_path, node_id, parse_path, target_of, variant_of
from wattmesh_drivers.opcua.security import Login, Security
from wattmesh_drivers.opcua.session import Session
from wattmesh_drivers.opcua.subscription import Granted, Item, Subscription
from wattmesh_drivers.template import PointModel, Template

log = logging.getLogger(__name__)

_CHECK_AGAIN_S = 60.0
"""So often what is missing is looked for again, and a subscription's values are read once: some servers compare with the last
sample instead of the last value they told, and never tell of a slow drift, or of a new status, inside the dead band."""
_SHOWN = 8
"""Missing nodes that a message names; the attribute has all."""
_BAD, _UNCERTAIN = 0x80000000, 0x40000000
"""Severity, the upper two bits of a status code (OPC 10000-4, 7.39)."""
_GONE = {ua.StatusCodes.BadNodeIdUnknown, ua.StatusCodes.BadNodeIdInvalid}
_NEVER_READABLE = _GONE | {
    ua.StatusCodes.BadAttributeIdInvalid, ua.StatusCodes.BadNotReadable, ua.StatusCodes.BadUserAccessDenied,
}  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_NS = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What became of every point that is read, after the last connect or check."""

    points: int
    """Points that are read; sums of others are not among them."""
    delivered: int
    """Points for which the server gave a value or a status, and that it watches where there is a subscription."""
    missing: Mapping[str, str]
    """Points that it does not have or does not give, and why."""
    missing_settings: Mapping[str, str]

    @property
    def accounted(self) -> int:
        """Equal to ``points``, or some are lost without a word."""
        return self.delivered + len(self.missing)


class OpcUaDriver(BaseDriver):
    """A device behind an OPC UA server.

    Times in ``source_times_ns`` are the server's: of its source, else its own, else ours at the read. Many servers give a value
    that stands still the time of its last change, so an old time is no sign of an old value: for that see ``known_times_ns``.

    Args:
        asset_id: Its name at the site.
        template: Protocol ``opcua``.
        url: ``opc.tcp://host:port/…``.
        clock: Stamps readings that have no time of their own; its UTC judges certificates.
        security: None: the channel is not secured.
        login: None: anonymous.
        timeout_s: Longest wait for one answer; None: the template's.
        base: See :class:`wattmesh_drivers.driver.BaseDriver`.

    Raises:
        ConfigurationError: The URL, a node id or a browse path cannot be read, or a login would go unsecured to another machine.
    """

    def __init__(
        self,
        asset_id: str,
        template: Template,
        url: str,
        clock: Clock,
        *,
        security: Security | None = None,
        login: Login | None = None,
        timeout_s: float | None = None,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(asset_id, template, clock, **base)
        self._url = url
        self._security = security
        self._login = login
        self._timeout_s = timeout_s or template.connection.timeout_ms / 1000
        self._uri = str(template.namespace)
        self._paths = {
            model.id: parse_path(model.path, self._uri)
            for model in (*template.points, *template.settings)
            if model.path is not None
        }
        for model in (*template.points, *template.settings):
            if model.node is not None:
                node_id(model.node, 0)
        self._session_of_url()  # a wrong URL is found now and not at the first poll
        count = len(template.points)
        self._readable = [index for index, model in enumerate(template.points) if model.sum is None]
        self._rows = [
            (model.scale * model.sign, model.offset, model.sentinel, *self.believed(model)) for model in template.points
        ]
        self._dead_bands = [model.dead_band or 0.0 for model in template.points]
        self._held = array("d", [math.nan] * count)
        """Values as they came; a poll copies them, so that what a subscription tells between two polls waits for the next."""
        self._held_qualities = bytearray([Quality.BAD] * count)
        self._held_times_ns = array("q", [0] * count)
        self.known_times_ns = array("q", [0] * count)
        self.tap: Callable[[Sequence[tuple[str, object, int]]], None] | None = None
        """Told of values as they came, with their status codes, by point; for recordings."""
        self._session: Session | None = None
        self._subscription: Subscription | None = None
        self._nodes: dict[str, ua.NodeId] = {}
        self._order: list[int] = []
        self._plan: list[ua.ReadParameters] = []
        self._check_at = math.inf
        self._lost_seen = 0
        self._named: dict[str, str] = {}
        """Missing points and settings as they were named last: nothing is said twice."""
        self._granted_said = ""
        self.audit = Audit(points=len(self._readable), delivered=0, missing={}, missing_settings={})

    def _session_of_url(self) -> Session:
        return Session(
            self._url, timeout_s=self._timeout_s, security=self._security, login=self._login,
            utc_ns=self._clock.utc_ns, monotonic=self._monotonic,
        )  # fmt: skip

    @property
    def granted(self) -> Granted | None:
        """What the server made of the subscription that was asked for; none where values are read."""
        return self._subscription.granted if self._subscription is not None else None

    # -- connecting

    async def _open(self) -> None:
        await self._shut()
        session = self._session = self._session_of_url()
        await session.open()
        if self._uri not in session.namespaces:
            raise ConfigurationError(
                f"{session.url} has no namespace {self._uri!r}; it has: {', '.join(session.namespaces[1:])}"
            )
        self._nodes.clear()
        model = self.template.subscription
        if model is not None:
            self._subscription = Subscription(session, model, self._told, self._monotonic)
            self._lost_seen = 0
            await self._subscription.open()
        await self._check(session)
        self._say_granted()

    async def _shut(self) -> None:
        session, self._session = self._session, None
        self._subscription = None
        if session is not None:
            await session.close()
        for index in range(len(self._held)):  # what was told before the connection was lost is of no use after it
            self._held[index] = math.nan
            self._held_qualities[index] = Quality.BAD

    def _say_granted(self) -> None:
        granted, wanted = self.granted, self.template.subscription
        if granted is None or wanted is None:
            return
        differences = granted.differences(wanted)
        if differences and differences != self._granted_said:
            log.warning("%s: the server grants %s", self.asset.id, differences)
        self._granted_said = differences
        if not granted.heartbeat:
            log.warning(
                "%s: the server's clock cannot be watched; its publishing counts as its sign of life", self.asset.id
            )

    # -- every node is accounted for

    async def _check(self, session: Session) -> None:
        """Find all nodes, have them watched, read them once, and say which are missing.

        Raises:
            UnavailableError: No answer.
            ConfigurationError: Not one of the points is there.
        """
        reasons = await self._find_nodes(session)
        points = [index for index in self._readable if self.template.points[index].id in self._nodes]
        if self._subscription is not None:
            reasons |= await self._watch(self._subscription, points)
        settings = [model.id for model in self.template.settings if model.id in self._nodes]
        nodes = [self._nodes[self.template.points[index].id] for index in points]
        results = await session.read(session.plan_read(nodes + [self._nodes[name] for name in settings]))
        delivered = 0
        for index, result in zip(points, results[: len(points)], strict=True):
            code = result.StatusCode.value if result.StatusCode is not None else 0
            name = self.template.points[index].id
            if code in _NEVER_READABLE:
                reasons.setdefault(name, str(result.StatusCode.name))
                if code in _GONE and self._subscription is not None:
                    self._subscription.monitored.discard(index)  # an item dies with its node: made anew when it is back
            delivered += name not in reasons
        for name, result in zip(settings, results[len(points) :], strict=True):
            if result.StatusCode is not None and result.StatusCode.value in _GONE:
                reasons[name] = str(result.StatusCode.name)
        self._take(points, results[: len(points)])
        for index in self._readable:
            if self.template.points[index].id in reasons:
                self._held[index], self._held_qualities[index] = math.nan, Quality.BAD
        self._order, self._plan = points, session.plan_read(nodes)
        self._account(delivered, reasons)
        again = self._subscription is not None or bool(reasons)
        self._check_at = self._monotonic() + _CHECK_AGAIN_S if again else math.inf
        if self._readable and not delivered:
            raise ConfigurationError(f"{session.url} has none of the {len(self._readable)} nodes: {_named(reasons)}")

    async def _find_nodes(self, session: Session) -> dict[str, str]:
        """Node ids by this session's namespace indices; gives what has none, and why. Paths go in one call."""
        space = session.namespaces.index(self._uri)
        reasons: dict[str, str] = {}
        sought: dict[str, ua.BrowsePath] = {}
        for model in (*self.template.points, *self.template.settings):
            if model.id in self._nodes:
                continue
            if model.node is not None:
                self._nodes[model.id] = node_id(model.node, space)
            elif model.id in self._paths:
                path = browse_path(self._paths[model.id], session.namespaces)
                if path is None:
                    reasons[model.id] = f"{model.path} names a namespace that the server lacks"
                else:
                    sought[model.id] = path
        if sought:
            results = await session.translate(list(sought.values()))
            for name, result in zip(sought, results, strict=True):
                target = target_of(result)
                if isinstance(target, str):
                    reasons[name] = target
                else:
                    self._nodes[name] = target
        return reasons

    async def _watch(self, subscription: Subscription, points: Sequence[int]) -> dict[str, str]:
        """Have the points watched that are not yet; gives those that the server refuses."""
        models = self.template.points
        items = [
            Item(
                index=index, node=self._nodes[models[index].id], dead_band=self._dead_bands[index] / models[index].scale
            )
            for index in points
            if index not in subscription.monitored
        ]
        refused = await subscription.add(items) if items else {}
        return {models[index].id: reason for index, reason in refused.items()}

    def _account(self, delivered: int, reasons: Mapping[str, str]) -> None:
        settings = {model.id for model in self.template.settings}
        points = {self.template.points[index].id for index in self._readable}
        missing = {name: reason for name, reason in reasons.items() if name in points}
        gone = {name: reason for name, reason in reasons.items() if name in settings}
        self.audit = Audit(points=len(points), delivered=delivered, missing=missing, missing_settings=gone)
        self.counters["missing_nodes"] = len(reasons)
        self.counters["accounted"] = self.audit.accounted
        if reasons.keys() - self._named.keys():
            log.warning(
                "%s: %d of %d nodes are missing, the others go on: %s",
                self.asset.id, len(reasons), len(points | settings), _named(reasons),
            )  # fmt: skip
        elif self._named and not reasons:
            log.warning("%s: all nodes are there again", self.asset.id)
        self._named = dict(reasons)

    # -- values

    async def _read(self) -> None:
        session, subscription = self._opened(), self._subscription
        await session.keep()
        if subscription is not None:
            if (reason := subscription.silence()) is not None:
                raise UnavailableError(f"{session.url}: {reason}")
            if subscription.lost != self._lost_seen:
                self.counters["lost_notifications"] += subscription.lost - self._lost_seen
                self._lost_seen = subscription.lost
                self._check_at = -math.inf  # what they said is read instead
        if self._monotonic() >= self._check_at:
            await self._check(session)
        elif subscription is None:
            self._take(self._order, await session.read(self._plan))
        self.values[:] = self._held
        self.qualities[:] = self._held_qualities
        self.source_times_ns[:] = self._held_times_ns
        known_ns = self._clock.utc_ns()
        if subscription is not None:  # its values were sure when it gave its last sign of life
            known_ns -= round((self._monotonic() - subscription.beat_at) * 1e9)
        self.known_times_ns[:] = array("q", [known_ns]) * len(self.known_times_ns)

    def _told(self, index: int, result: ua.DataValue) -> None:
        """A notification: what a server should not have told, as it is inside the dead band, is dropped."""
        self.counters["notifications"] += 1
        if not 0 <= index < len(self._rows):
            return
        band = self._dead_bands[index]
        if band and self._held_qualities[index] == Quality.GOOD:
            raw = result.Value.Value if result.Value is not None else None
            factor, offset, *_ = self._rows[index]
            good = result.StatusCode is None or result.StatusCode.value < _UNCERTAIN
            if good and isinstance(raw, int | float) and abs(raw * factor + offset - self._held[index]) <= band:
                self.counters["inside_dead_band"] += 1
                return
        self._take((index,), (result,))

    def _take(self, indices: Sequence[int], results: Sequence[ua.DataValue]) -> None:
        """Values, qualities and times of points; the hot path of a poll."""
        values, qualities, times, rows = self._held, self._held_qualities, self._held_times_ns, self._rows
        now_ns = self._clock.utc_ns()
        last: datetime | None = None
        last_ns = now_ns
        for index, result in zip(indices, results, strict=True):
            status = result.StatusCode
            code = 0 if status is None else status.value
            raw = result.Value.Value if result.Value is not None else None
            factor, offset, sentinel, least, most = rows[index]
            value = raw * factor + offset if isinstance(raw, int | float) and raw != sentinel else math.nan
            if code < _BAD and least <= value <= most and math.isfinite(value):  # nan is in no range
                values[index] = value
                qualities[index] = Quality.GOOD if code < _UNCERTAIN else Quality.UNCERTAIN
            else:
                values[index] = math.nan
                qualities[index] = Quality.BAD
                if code in _GONE and self.template.points[index].id not in self._named:
                    self._check_at = -math.inf  # it was there before: find out what else is gone
            stamp = result.SourceTimestamp
            if stamp != last or stamp is None:
                last, last_ns = stamp, _ns_of(stamp) or _ns_of(result.ServerTimestamp) or now_ns
            times[index] = last_ns
        if self.tap is not None:
            self.tap(
                [
                    (
                        self.template.points[index].id,
                        result.Value.Value if result.Value is not None else None,
                        0 if result.StatusCode is None else result.StatusCode.value,
                    )
                    for index, result in zip(indices, results, strict=True)
                ]
            )

    # -- settings

    async def _write(self, setting: PointModel, value: float) -> None:
        typed = variant_of(setting, value)
        await self._opened().write(self._node_of(setting), typed)

    async def _read_setting(self, setting: PointModel) -> float:
        session = self._opened()
        (result,) = await session.read(session.plan_read([self._node_of(setting)]))
        if result.StatusCode is not None and result.StatusCode.is_bad():
            refusal = f"{session.url}: {setting.id} cannot be read back ({result.StatusCode.name})"
            if result.StatusCode.value in _NEVER_READABLE:
                raise ConfigurationError(refusal)
            raise UnavailableError(refusal)
        raw = result.Value.Value if result.Value is not None else None
        if not isinstance(raw, int | float):
            raise UnavailableError(f"{session.url}: {setting.id} reads back as no number")
        return float(raw) * setting.scale * setting.sign

    def _node_of(self, setting: PointModel) -> ua.NodeId:
        if (reason := self.audit.missing_settings.get(setting.id)) is not None:
            raise ConfigurationError(f"{self._url} lacks the setting {setting.id} ({reason})")
        return self._nodes[setting.id]

    def _opened(self) -> Session:
        if self._session is None:
            raise UnavailableError(f"not connected to {self._url}")
        return self._session

    def _step_of(self, setting: PointModel) -> float:
        return 0.0 if setting.type in {"double", "float"} else setting.scale

    def register_of(self, point_id: str) -> RegisterLocation | None:
        """There are no registers here."""
        del point_id
        return None


def _ns_of(stamp: datetime | None) -> int:
    """UTC of a time stamp; 0 where there is none, which some servers say as 1601 or 9999 (OPC 10000-6, 5.2.2.5)."""
    if stamp is None:
        return 0
    since = (stamp if stamp.tzinfo is not None else stamp.replace(tzinfo=UTC)) - _EPOCH
    ns = ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000
    return ns if 0 < ns < _LAST_NS else 0


def _named(reasons: Mapping[str, str]) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(reasons.items())[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else "")
