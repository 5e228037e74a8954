"""MQTT 5 by paho: any broker; TLS with verified certificates on anything beyond loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_a2a.transports.base import Inbound, TransportLimits

log = logging.getLogger(__name__)

_SESSION_EXPIRY_S = 3600
_KEEPALIVE_S = 20
_QUEUE_AT_MOST = 2000


class MqttTransport:
    """One connection to one broker; the network runs on paho's thread, everything else on the event loop.

    Args:
        url: ``mqtt://host[:port]`` (loopback only) or ``mqtts://host[:port]``.
        client_id: ``org/unit/agent``.
        ca: File of the authorities to trust; the system's where none is given.
        certificate: Our certificate, for brokers that want one.
        key: Its private key.

    Raises:
        ConfigurationError: The URL is no broker's address, or it is plain text beyond loopback.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        limits: TransportLimits | None = None,
    ) -> None:
        self.limits = limits or TransportLimits()
        self._url = url
        self._host, self._port, tls = parse_broker_url(url)
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5, reconnect_on_failure=True
        )
        if tls:
            context = ssl.create_default_context(cafile=str(ca) if ca else None)
            if certificate:
                context.load_cert_chain(str(certificate), str(key) if key else None)
            self._client.tls_set_context(context)
        self._client.reconnect_delay_set(min_delay=1, max_delay=10)
        self._client.max_inflight_messages_set(self.limits.max_in_flight)
        self._client.on_connect = self._connected_on_thread
        self._client.on_connect_fail = self._refused_on_thread
        self._client.on_disconnect = self._disconnected_on_thread
        self._client.on_message = self._message_on_thread
        self._client.on_publish = self._published_on_thread
        self._client.on_socket_open = _no_delay
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connected = asyncio.Event()
        self._cause = "no attempt yet"
        self._said_down = False
        self._stopping = False
        self._filters: dict[str, int] = {}
        self._handlers: list[tuple[str, Callable[[Inbound], None]]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._handed_over = 0
        self._acknowledged = 0

    @property
    def connected(self) -> bool:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        return self._connected.is_set()

    def set_will(self, topic: str, payload: bytes) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._client.will_set(topic, payload, qos=1, retain=True)

    async def start(self) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._loop = asyncio.get_running_loop()
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's class has no types
        properties.SessionExpiryInterval = _SESSION_EXPIRY_S
        self._client.connect_async(
            self._host, self._port, keepalive=_KEEPALIVE_S, clean_start=False, properties=properties
        )
        self._client.loop_start()

    async def wait_connected(self, timeout_s: float) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        try:
            await asyncio.wait_for(self._connected.wait(), timeout_s)
        except TimeoutError:
            raise UnavailableError(
                f"no connection to the broker at {self._url} ({self._cause}); is it running there?"
            ) from None

    async def stop(self) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`; waits shortly for what is in flight."""
        for _ in range(100):
            if not self.connected or self._handed_over <= self._acknowledged:
                break
            await asyncio.sleep(0.01)
        self._stopping = True
        self._client.disconnect()
        await asyncio.get_running_loop().run_in_executor(None, self._client.loop_stop)
        self._connected.clear()

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_s: int | None = None,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
        user_properties: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        if not self.connected:
            raise UnavailableError(f"not connected to the broker at {self._url}")
        if len(payload) > self.limits.max_payload_bytes:
            raise ConfigurationError(f"{len(payload)} bytes are more than this transport takes")
        if self._handed_over - self._acknowledged >= _QUEUE_AT_MOST:
            raise UnavailableError("too many messages wait for the broker")
        properties = None
        if expiry_s is not None or response_topic or correlation_data or user_properties:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's class has no types
            if expiry_s is not None:
                properties.MessageExpiryInterval = expiry_s
            if response_topic:
                properties.ResponseTopic = response_topic
            if correlation_data:
                properties.CorrelationData = correlation_data
            for pair in user_properties:
                properties.UserProperty = pair
        # Return code 4 means "queued, not connected": paho sends it itself after the reconnect, so it is no failure.
        self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        if qos:
            self._handed_over += 1

    async def subscribe(self, topic_filter: str, handler: Callable[[Inbound], None], *, qos: int = 1) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._handlers.append((topic_filter, handler))
        self._filters[topic_filter] = qos
        if self.connected:
            self._client.subscribe(topic_filter, qos=qos)

    def on_connected(self, callback: Callable[[], None]) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._callbacks.append(callback)

    # -- on paho's thread: hand over and return

    def _hand_over(self, callback: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already: we are being stopped
                self._loop.call_soon_threadsafe(callback, *arguments)

    def _connected_on_thread(
        self, client: paho.Client, userdata: object, flags: object, reason: ReasonCode, properties: object
    ) -> None:
        if reason.is_failure:
            self._hand_over(self._lost, str(reason))
            return
        if self._filters:
            client.subscribe([(name, SubscribeOptions(qos=qos)) for name, qos in self._filters.items()])
        self._hand_over(self._found)

    def _refused_on_thread(self, client: paho.Client, userdata: object) -> None:
        self._hand_over(self._lost, "nobody answers there")

    def _disconnected_on_thread(
        self, client: paho.Client, userdata: object, flags: object, reason: ReasonCode, properties: object
    ) -> None:
        self._hand_over(self._lost, str(reason))

    def _message_on_thread(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        properties = message.properties
        inbound = Inbound(
            topic=message.topic,
            payload=bytes(message.payload),
            response_topic=getattr(properties, "ResponseTopic", None),
            correlation_data=getattr(properties, "CorrelationData", None),
            retained=bool(message.retain),
            user_properties=tuple(getattr(properties, "UserProperty", ())),
        )
        self._hand_over(self._dispatch, inbound)

    def _published_on_thread(
        self, client: paho.Client, userdata: object, mid: int, reason: ReasonCode, properties: object
    ) -> None:
        self._acknowledged += 1  # also counts QoS 0, which only makes the bound on what waits laxer

    # -- on the event loop

    def _found(self) -> None:
        if self._said_down:
            log.warning("the broker at %s is there", self._url)
            self._said_down = False
        self._connected.set()
        for callback in self._callbacks:
            callback()

    def _lost(self, cause: str) -> None:
        self._cause = cause
        self._handed_over = self._acknowledged = 0
        if not self._said_down and not self._stopping:
            self._said_down = True
            log.warning("no broker at %s (%s); trying again until there is one", self._url, cause)
        self._connected.clear()

    def _dispatch(self, inbound: Inbound) -> None:
        for topic_filter, handler in self._handlers:
            if paho.topic_matches_sub(topic_filter, inbound.topic):
                handler(inbound)


def parse_broker_url(url: str) -> tuple[str, int, bool]:
    """Host, port and whether to use TLS; raises :class:`ConfigurationError` with what is allowed."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"broker {url!r}: {error}") from error
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
        raise ConfigurationError(f"broker {url!r}: write mqtt://host:port (loopback) or mqtts://host:port")
    tls = parts.scheme == "mqtts"
    if not tls and not is_loopback(parts.hostname):
        raise ConfigurationError(f"broker {url!r}: plain text is for loopback only; use mqtts:// with certificates")
    return parts.hostname, port or (8883 if tls else 1883), tls


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _no_delay(client: paho.Client, userdata: object, sock: object) -> None:
    """Without TCP_NODELAY a QoS 1 exchange waits for Nagle and delayed acknowledgements (40 ms)."""
    import socket

    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
