"""MQTT 5 by AWS's own client (extra ``iot``): IoT Core, or any broker with client certificates.

The client keeps IoT Core's limits by itself as well; its threads hand everything over to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from awscrt import io, mqtt5

from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_a2a.transports.base import AWS_IOT_CORE, Inbound, TransportLimits, matches, unshared
from wattmesh_a2a.transports.mqtt import parse_broker_url

log = logging.getLogger(__name__)

_SESSION_EXPIRY_S = 3600
_KEEPALIVE_S = 30
_FILTERS_AT_ONCE = 8
_STOP_S = 5.0


class AwsIotTransport:
    """One connection; see :class:`wattmesh_a2a.transports.base.Transport`.

    Args:
        url: ``mqtts://ENDPOINT[:port]``.
        client_id: The thing's name, which its policy allows.
        certificate: Of the device.
        key: Its private key.
        ca: The authorities to trust; the system's where none is given.
        limits: IoT Core's, unless the broker is another.

    Raises:
        ConfigurationError: The URL is no broker's address with TLS, or a file cannot be read.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        certificate: Path,
        key: Path,
        ca: Path | None = None,
        limits: TransportLimits = AWS_IOT_CORE,
    ) -> None:
        self.limits = limits
        self._url = url
        self._host, self._port, tls = parse_broker_url(url)
        if not tls:
            raise ConfigurationError(f"broker {url!r}: this client speaks TLS alone; write mqtts://host:port")
        try:
            options = io.TlsContextOptions.create_client_with_mtls_from_path(str(certificate), str(key))
            if ca is not None:
                options.override_default_trust_store_from_path(None, str(ca))
            self._tls = io.ClientTlsContext(options)
        except Exception as error:  # awscrt raises several kinds for a file it cannot use
            raise ConfigurationError(f"{certificate}, {key}: cannot be used for TLS: {error}") from error
        self._client_id = client_id
        self._will: tuple[str, bytes] | None = None
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connected = asyncio.Event()
        self._stopped = asyncio.Event()
        self._cause = "no attempt yet"
        self._said_down = False
        self._stopping = False
        self._in_flight = 0
        self._filters: dict[str, int] = {}
        self._handlers: list[tuple[str, Callable[[Inbound], None]]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._room_callbacks: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        return self._connected.is_set()

    @property
    def in_flight(self) -> int:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        return self._in_flight

    def on_room(self, callback: Callable[[], None]) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._room_callbacks.append(callback)

    def set_will(self, topic: str, payload: bytes) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._will = (topic, payload)

    async def start(self) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._loop = asyncio.get_running_loop()
        will = None
        if self._will is not None:
            will = mqtt5.PublishPacket(
                topic=self._will[0], payload=self._will[1], qos=mqtt5.QoS.AT_LEAST_ONCE, retain=True
            )
        connect = mqtt5.ConnectPacket(
            keep_alive_interval_sec=_KEEPALIVE_S,
            client_id=self._client_id,
            session_expiry_interval_sec=_SESSION_EXPIRY_S,
            will=will,
        )
        self._client = mqtt5.Client(
            mqtt5.ClientOptions(
                host_name=self._host,
                port=self._port,
                tls_ctx=self._tls,
                connect_options=connect,
                session_behavior=mqtt5.ClientSessionBehaviorType.REJOIN_ALWAYS,
                offline_queue_behavior=mqtt5.ClientOperationQueueBehaviorType.FAIL_ALL_ON_DISCONNECT,
                min_reconnect_delay_ms=500,
                max_reconnect_delay_ms=10_000,
                on_publish_callback_fn=lambda data: self._hand_over(self._dispatch, data.publish_packet),
                on_lifecycle_event_connection_success_fn=lambda _: self._hand_over(self._found),
                on_lifecycle_event_connection_failure_fn=lambda data: self._hand_over(self._lost, str(data.exception)),
                on_lifecycle_event_disconnection_fn=lambda data: self._hand_over(self._lost, str(data.exception)),
                on_lifecycle_event_stopped_fn=lambda _: self._hand_over(self._stopped.set),
            )
        )
        self._client.start()

    async def wait_connected(self, timeout_s: float) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        try:
            await asyncio.wait_for(self._connected.wait(), timeout_s)
        except TimeoutError:
            raise UnavailableError(f"no connection to the broker at {self._url} ({self._cause})") from None

    async def stop(self) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`; waits shortly for what is in flight."""
        for _ in range(100):
            if not self.connected or not self._in_flight:
                break
            await asyncio.sleep(0.01)
        self._stopping = True
        if self._client is not None:
            self._client.stop(mqtt5.DisconnectPacket())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), _STOP_S)
            self._client = None
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
        if not self.connected or self._client is None:
            raise UnavailableError(f"not connected to the broker at {self._url}")
        packet = mqtt5.PublishPacket(
            topic=topic,
            payload=payload,
            qos=mqtt5.QoS.AT_LEAST_ONCE if qos else mqtt5.QoS.AT_MOST_ONCE,
            retain=retain,
            message_expiry_interval_sec=expiry_s,
            response_topic=response_topic,
            correlation_data=correlation_data,
            user_properties=[mqtt5.UserProperty(name=name, value=value) for name, value in user_properties],
        )
        sent: Future[object] = self._client.publish(packet)
        self._in_flight += 1
        sent.add_done_callback(lambda _: self._hand_over(self._settled))

    async def subscribe(self, topic_filter: str, handler: Callable[[Inbound], None], *, qos: int = 1) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._handlers.append((topic_filter, handler))
        self._filters[topic_filter] = qos
        if self.connected:
            self._subscribe([topic_filter])

    def on_connected(self, callback: Callable[[], None]) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._callbacks.append(callback)

    def _hand_over(self, callback: Callable[..., None], *arguments: object) -> None:
        """From the client's threads to the event loop."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already: we are being stopped
                self._loop.call_soon_threadsafe(callback, *arguments)

    def _subscribe(self, filters: list[str]) -> None:
        for at in range(0, len(filters), _FILTERS_AT_ONCE):
            wanted = [
                mqtt5.Subscription(
                    topic_filter=name, qos=mqtt5.QoS.AT_LEAST_ONCE if self._filters[name] else mqtt5.QoS.AT_MOST_ONCE
                )
                for name in filters[at : at + _FILTERS_AT_ONCE]
            ]
            self._client.subscribe(mqtt5.SubscribePacket(subscriptions=wanted))

    def _found(self) -> None:
        if self._stopping:
            return
        if self._said_down:
            log.warning("the broker at %s is there", self._url)
            self._said_down = False
        self._in_flight = 0
        self._connected.set()
        self._subscribe(list(self._filters))
        for callback in (*self._callbacks, *self._room_callbacks):
            callback()

    def _lost(self, cause: str) -> None:
        self._cause = cause
        self._in_flight = 0
        self._connected.clear()
        if not self._said_down and not self._stopping:
            self._said_down = True
            log.warning("no broker at %s (%s); trying again until there is one", self._url, cause)
        for callback in self._room_callbacks:
            callback()

    def _settled(self) -> None:
        self._in_flight = max(0, self._in_flight - 1)
        for callback in self._room_callbacks:
            callback()

    def _dispatch(self, packet: Any) -> None:
        inbound = Inbound(
            topic=packet.topic,
            payload=bytes(packet.payload or b""),
            response_topic=packet.response_topic,
            correlation_data=packet.correlation_data,
            retained=bool(packet.retain),
            user_properties=tuple((one.name, one.value) for one in packet.user_properties or ()),
        )
        for topic_filter, handler in self._handlers:
            if matches(unshared(topic_filter), inbound.topic):
                handler(inbound)
