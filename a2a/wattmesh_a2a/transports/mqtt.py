"""MQTT 5 by paho: any broker; TLS with verified certificates on anything beyond loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_a2a.transports.base import Inbound, TransportLimits, matches, unshared
from wattmesh_a2a.transports.buffered_socket import BufferedSocket
from wattmesh_a2a.transports.packets import PackedProperties, Published, read_publish

log = logging.getLogger(__name__)

_SESSION_EXPIRY_S = 3600
_KEEPALIVE_S = 20
_QUEUE_AT_MOST = 2000
_FILTERS_AT_ONCE = 8
"""In one SUBSCRIBE: what AWS IoT Core takes."""
_CONNACK_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_TOPICS_REMEMBERED = 2000


class MqttTransport:
    """One connection to one broker, driven by the event loop: no thread, but for the moment of connecting.

    paho's own network thread would cost two switches of threads a message; here the loop tells paho when its socket can be read.

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
        self._client = _Client(self._written, self._on_message, self._on_published, client_id)
        if tls:
            context = ssl.create_default_context(cafile=str(ca) if ca else None)
            if certificate:
                context.load_cert_chain(str(certificate), str(key) if key else None)
            self._client.tls_set_context(context)
        # paho's own window would hold back a command behind telemetry: ours (Lanes) is in front of it.
        self._client.max_inflight_messages_set(2 * self.limits.max_in_flight + 20)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_socket_close = self._on_socket_close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._gone = asyncio.Event()
        self._settled = asyncio.Event()
        """The broker answered: it took us, or it did not."""
        self._cause = "no attempt yet"
        self._said_down = False
        self._stopping = False
        self._socket: BufferedSocket | None = None
        self._flushing = False
        self._filters: dict[str, int] = {}
        self._handlers: list[tuple[str, Callable[[Inbound], None]]] = []
        self._takers: dict[str, list[Callable[[Inbound], None]]] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._room_callbacks: list[Callable[[], None]] = []
        self._unacknowledged: set[int] = set()
        self._thread_of_loop = 0

    @property
    def connected(self) -> bool:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        return self._connected.is_set()

    @property
    def in_flight(self) -> int:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        return len(self._unacknowledged)

    def on_room(self, callback: Callable[[], None]) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._room_callbacks.append(callback)

    def set_will(self, topic: str, payload: bytes) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._client.will_set(topic, payload, qos=1, retain=True)

    async def start(self) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._loop = asyncio.get_running_loop()
        self._thread_of_loop = threading.get_ident()
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's class has no types
        properties.SessionExpiryInterval = _SESSION_EXPIRY_S
        self._client.connect_async(
            self._host, self._port, keepalive=_KEEPALIVE_S, clean_start=False, properties=properties
        )
        self._keeper = self._loop.create_task(self._keep_connected(), name="mqtt")

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
            if not self.connected or not self._unacknowledged:
                break
            await asyncio.sleep(0.01)
        self._stopping = True
        if self.connected:
            self._client.disconnect()
            self._flush()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._connected.clear()

    # -- the connection

    async def _keep_connected(self) -> None:
        assert self._loop is not None
        pause_s = _FIRST_PAUSE_S
        while not self._stopping:
            self._gone.clear()
            self._settled.clear()
            # In a thread of its own while it blocks: name, TCP and TLS. Cancelling must not leave it behind.
            connecting = self._loop.run_in_executor(None, self._client.reconnect)
            try:
                await asyncio.shield(connecting)
                self._listen()
                await asyncio.wait_for(self._settled.wait(), _CONNACK_S)
                if not self._connected.is_set():
                    raise ConnectionRefusedError(self._cause)
                pause_s = _FIRST_PAUSE_S
                await self._serve()
            except (OSError, ValueError, paho.WebsocketConnectionError) as error:  # TimeoutError is an OSError
                self._lost(str(error) or "nobody answers there")
            finally:
                if self._stopping:
                    await asyncio.gather(connecting, return_exceptions=True)
                self._close()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _serve(self) -> None:
        """Until the connection is gone: keep-alive, once a second."""
        while not self._gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), 1.0)
            self._client.loop_misc()

    def _close(self) -> None:
        """The socket is closed whatever state paho believes it to be in."""
        sock = self._socket or self._client.buffered
        self._socket = None
        self._flushing = False
        if sock is not None and self._loop is not None:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
                self._loop.remove_writer(sock.fileno())
            sock.close()

    def _listen(self) -> None:
        assert self._loop is not None
        self._socket = self._client.buffered
        if self._socket is not None and self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket.fileno(), self._read)
            self._flush()
            self._read()  # TLS may hold bytes already that no select sees

    def _on_socket_close(self, client: paho.Client, userdata: object, sock: object) -> None:
        """Before paho closes it; nothing to undo where it was never listened to."""
        if self._loop is not None and self._socket is not None and threading.get_ident() == self._thread_of_loop:
            with contextlib.suppress(OSError, ValueError):
                self._loop.remove_reader(self._socket.fileno())
                self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        sock = self._socket
        if sock is None:
            return
        sock.fill()
        while sock.readable and self._client.buffered is sock:
            if self._client.loop_read() != paho.MQTT_ERR_SUCCESS:
                break
        if self._client.want_write():
            self._client.loop_write()

    def _written(self) -> None:
        """Something waits in the buffer: write it with what else comes in this turn of the loop."""
        if self._loop is not None and threading.get_ident() == self._thread_of_loop and self._socket is not None:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        sock = self._socket
        if sock is None or self._loop is None or self._flushing or sock.fileno() < 0:
            return
        if not sock.flush():
            self._flushing = True
            self._loop.add_writer(sock.fileno(), self._flush_on)
        elif self._client.want_write():  # held back while the buffer was full
            self._client.loop_write()

    def _flush_on(self) -> None:
        sock = self._socket
        if sock is not None and self._loop is not None and sock.flush():
            self._flushing = False
            self._loop.remove_writer(sock.fileno())
            if self._client.want_write():
                self._client.loop_write()

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
        if len(self._unacknowledged) >= _QUEUE_AT_MOST:
            raise UnavailableError("too many messages wait for the broker")
        properties: Any = None
        if expiry_s is not None or response_topic or correlation_data or user_properties:
            properties = PackedProperties(
                expiry_s=expiry_s,
                response_topic=response_topic,
                correlation_data=correlation_data,
                user_properties=user_properties,
            )
        # Return code 4 means "queued, not connected": paho sends it itself after the reconnect, so it is no failure.
        sent = self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        if qos:
            self._unacknowledged.add(sent.mid)

    async def subscribe(self, topic_filter: str, handler: Callable[[Inbound], None], *, qos: int = 1) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._handlers.append((topic_filter, handler))
        self._takers.clear()
        self._filters[topic_filter] = qos
        if self.connected:
            self._client.subscribe(topic_filter, qos=qos)

    def on_connected(self, callback: Callable[[], None]) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._callbacks.append(callback)

    # -- paho's callbacks, all on the event loop

    def _on_connect(
        self, client: paho.Client, userdata: object, flags: object, reason: ReasonCode, properties: object
    ) -> None:
        if reason.is_failure:
            self._lost(str(reason))
            return
        wanted = [(name, SubscribeOptions(qos=qos)) for name, qos in self._filters.items()]
        for at in range(0, len(wanted), _FILTERS_AT_ONCE):
            client.subscribe(wanted[at : at + _FILTERS_AT_ONCE])
        assert self._loop is not None
        self._loop.call_soon(self._found)

    def _on_disconnect(
        self, client: paho.Client, userdata: object, flags: object, reason: ReasonCode, properties: object
    ) -> None:
        self._lost(str(reason))

    def _on_message(self, message: Published, *, retained: bool) -> None:
        inbound = Inbound(
            topic=message.topic,
            payload=message.payload,
            response_topic=message.response_topic,
            correlation_data=message.correlation_data,
            retained=retained,
            user_properties=message.user_properties,
        )
        for handler in self._handlers_of(message.topic):
            try:
                handler(inbound)
            except Exception:  # it would leave paho in the middle of a packet
                log.exception("a handler of %s failed", message.topic)

    def _on_published(self, mid: int) -> None:
        self._unacknowledged.discard(mid)
        for callback in self._room_callbacks:
            callback()

    def _found(self) -> None:
        if self._said_down:
            log.warning("the broker at %s is there", self._url)
            self._said_down = False
        self._connected.set()
        self._settled.set()
        for callback in (*self._callbacks, *self._room_callbacks):
            callback()

    def _lost(self, cause: str) -> None:
        self._cause = cause
        self._unacknowledged.clear()
        if not self._said_down and not self._stopping:
            self._said_down = True
            log.warning("no broker at %s (%s); trying again until there is one", self._url, cause)
        self._connected.clear()
        self._gone.set()
        self._settled.set()
        for callback in self._room_callbacks:
            callback()

    def _handlers_of(self, topic: str) -> list[Callable[[Inbound], None]]:
        """Who takes a topic, remembered for the topics that come again and again."""
        found = self._takers.get(topic)
        if found is None:
            found = [handler for name, handler in self._handlers if matches(unshared(name), topic)]
            if len(self._takers) >= _TOPICS_REMEMBERED:
                self._takers.clear()
            self._takers[topic] = found
        return found


class _Client(paho.Client):
    """paho with a socket that reads and writes in large pieces, and a short way for PUBLISH and PUBACK.

    Four private methods of paho's are overridden for it; everything else of the protocol is paho's.
    """

    def __init__(
        self,
        written: Callable[[], None],
        message: Callable[..., None],
        published: Callable[[int], None],
        client_id: str,
    ) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        self.buffered: BufferedSocket | None = None
        self._handed_over, self._message, self._published = written, message, published

    def _create_socket(self) -> Any:
        sock = super()._create_socket()
        no_delay(sock)
        self.buffered = BufferedSocket(sock, self._handed_over)  # type: ignore[arg-type]  # never a web socket here
        return self.buffered

    def _handle_publish(self) -> MQTTErrorCode:
        first = self._in_packet["command"]
        try:
            found = read_publish(first, bytes(self._in_packet["packet"]))
        except ValueError as error:
            log.warning("the broker sent something that is no PUBLISH: %s", error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self._message(found, retained=bool(first & 1))
        return self._send_puback(found.packet_id) if found.packet_id else MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: Any) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        if len(packet) < 2:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        mid = int.from_bytes(packet[:2], "big")
        with self._out_message_mutex:
            if self._out_messages.pop(mid, None) is None:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            self._inflight_messages -= 1
            result = MQTTErrorCode.MQTT_ERR_SUCCESS
            if len(self._out_messages) >= self._max_inflight_messages:  # some wait their turn
                result = self._update_inflight()
        self._published(mid)
        return result


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


def no_delay(sock: Any) -> None:
    """Without TCP_NODELAY a QoS 1 exchange waits for Nagle and delayed acknowledgements (40 ms)."""
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
