"""MQTT by the nucleus of AWS IoT Greengrass, over its inter-process connection (extra ``greengrass``).

The nucleus owns the connection to IoT Core; this end hands publishes over and gets what was subscribed to. The lite nucleus ends
its stream without a word past 10 publishes that it has not answered, or at one of more than about 7.2 KB: the window and the size
are kept here as well as by the delivery layer, which queues by priority in front (:mod:`wattmesh_a2a.lanes`) and sends larger
messages in parts.

There is no will over this connection: who is lost shows by silence, or by the nucleus's own client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable
from typing import Any

import awsiot.greengrasscoreipc as ipc
from awsiot.eventstreamrpc import LifecycleHandler
from awsiot.greengrasscoreipc.client import SubscribeToIoTCoreStreamHandler
from awsiot.greengrasscoreipc.model import (
    IoTCoreMessage,
    PublishToIoTCoreRequest,
    SubscribeToIoTCoreRequest,
    UserProperty,
)

from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, UnavailableError
from wattmesh_a2a.transports.base import GREENGRASS_LITE, Inbound, TransportLimits

log = logging.getLogger(__name__)

SOCKET_VARIABLE, TOKEN_VARIABLE = "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT", "SVCUID"
"""What the nucleus gives a component: the path of its socket, and the token that says who it is."""
_CONNECT_S = 10.0
_ANSWER_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0


class GreengrassTransport:
    """See :class:`wattmesh_a2a.transports.base.Transport`.

    Args:
        socket: Path of the nucleus's socket; from the environment where none is given.
        token: Ours; from the environment where none is given.
        limits: The lite nucleus's, which hold for the other one too.

    Raises:
        ConfigurationError: This process is no component of a nucleus.
    """

    def __init__(
        self, socket: str | None = None, token: str | None = None, *, limits: TransportLimits = GREENGRASS_LITE
    ) -> None:
        self.limits = limits
        self._path = socket or os.environ.get(SOCKET_VARIABLE, "")
        self._token = token or os.environ.get(TOKEN_VARIABLE, "")
        if not self._path or not self._token:
            raise ConfigurationError(
                f"broker greengrass: {SOCKET_VARIABLE} and {TOKEN_VARIABLE} are not set; only a component that the nucleus "
                "started has them"
            )
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._gone = asyncio.Event()
        self._cause = "no attempt yet"
        self._said_down = False
        self._stopping = False
        self._life = 0
        self._in_flight = 0
        self._filters: dict[str, int] = {}
        self._handlers: dict[str, list[Callable[[Inbound], None]]] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._room_callbacks: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """See :class:`wattmesh_a2a.transports.base.Transport`; to the nucleus, which may itself be cut off."""
        return self._connected.is_set()

    @property
    def in_flight(self) -> int:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        return self._in_flight

    def on_room(self, callback: Callable[[], None]) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._room_callbacks.append(callback)

    def set_will(self, topic: str, payload: bytes) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`; there is none over this connection."""

    def on_connected(self, callback: Callable[[], None]) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._callbacks.append(callback)

    async def start(self) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._loop = asyncio.get_running_loop()
        self._keeper = self._loop.create_task(self._keep_connected(), name="greengrass")

    async def wait_connected(self, timeout_s: float) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        try:
            await asyncio.wait_for(self._connected.wait(), timeout_s)
        except TimeoutError:
            raise UnavailableError(f"no connection to the nucleus at {self._path} ({self._cause})") from None

    async def stop(self) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`; waits shortly for what is in flight."""
        for _ in range(100):
            if not self.connected or not self._in_flight:
                break
            await asyncio.sleep(0.01)
        self._stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._connected.clear()

    # -- the connection

    async def _keep_connected(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._gone.clear()
            self._life += 1
            try:
                await self._open()
                pause_s = _FIRST_PAUSE_S
                await self._gone.wait()
            except Exception as error:  # noqa: BLE001 - awscrt raises several kinds for a nucleus that is not there
                self._lost(self._life, str(error) or type(error).__name__)
            finally:
                await self._close()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _open(self) -> None:
        assert self._loop is not None
        life = self._life
        handler = _Life(lambda cause: self._hand_over(self._lost, life, cause))
        # It blocks until the socket is open: on a thread.
        self._client = await asyncio.to_thread(
            ipc.connect, ipc_socket=self._path, authtoken=self._token, lifecycle_handler=handler, timeout=_CONNECT_S
        )
        for name in list(self._filters):
            await self._subscribe(name)
        if self._said_down:
            log.warning("the nucleus at %s is there", self._path)
            self._said_down = False
        self._in_flight = 0
        self._connected.set()
        for callback in (*self._callbacks, *self._room_callbacks):
            callback()

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.wrap_future(client.close()), 2.0)

    def _lost(self, life: int, cause: str) -> None:
        if life != self._life:
            return
        self._cause = cause
        self._in_flight = 0
        self._connected.clear()
        self._gone.set()
        if not self._said_down and not self._stopping:
            self._said_down = True
            log.warning("no nucleus at %s (%s); trying again until there is one", self._path, cause)
        for callback in self._room_callbacks:
            callback()

    def _hand_over(self, callback: Callable[..., None], *arguments: object) -> None:
        """From the library's threads to the event loop."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already: we are being stopped
                self._loop.call_soon_threadsafe(callback, *arguments)

    # -- messages

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
            raise UnavailableError(f"not connected to the nucleus at {self._path}")
        if len(payload) > self.limits.max_payload_bytes:
            raise InvalidMessageError(f"{len(payload)} bytes are more than the nucleus takes at once")
        if self._in_flight >= self.limits.max_in_flight:
            raise UnavailableError("the nucleus has not answered the last publishes")
        request = PublishToIoTCoreRequest(
            topic_name=topic,
            qos=str(qos),
            payload=payload,
            retain=retain or None,
            message_expiry_interval_seconds=expiry_s,
            response_topic=response_topic,
            correlation_data=correlation_data,
            user_properties=[UserProperty(key=name, value=value) for name, value in user_properties] or None,
        )
        operation = self._client.new_publish_to_iot_core()
        self._in_flight += 1
        life = self._life
        operation.activate(request)
        operation.get_response().add_done_callback(lambda done: self._hand_over(self._answered, life, done.exception()))

    def _answered(self, life: int, error: BaseException | None) -> None:
        if life != self._life:
            return
        self._in_flight = max(0, self._in_flight - 1)
        if error is not None and self.connected:
            log.warning("the nucleus refused a publish: %s", error)  # who needs it repeats it
        for callback in self._room_callbacks:
            callback()

    async def subscribe(self, topic_filter: str, handler: Callable[[Inbound], None], *, qos: int = 1) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`; shared filters are not for components.

        Raises:
            ConfigurationError: A shared filter.
        """
        if topic_filter.startswith("$share/"):
            raise ConfigurationError(f"{topic_filter}: a component of Greengrass cannot be a member of a pool")
        self._handlers.setdefault(topic_filter, []).append(handler)
        known = topic_filter in self._filters
        self._filters[topic_filter] = qos
        if self.connected and not known:
            await self._subscribe(topic_filter)

    async def _subscribe(self, name: str) -> None:
        operation = self._client.new_subscribe_to_iot_core(
            _Arrivals(lambda event: self._hand_over(self._arrived, name, event))
        )
        operation.activate(SubscribeToIoTCoreRequest(topic_name=name, qos=str(self._filters[name])))
        await asyncio.wait_for(asyncio.wrap_future(operation.get_response()), _ANSWER_S)

    def _arrived(self, name: str, event: IoTCoreMessage) -> None:
        message = event.message
        if message is None or message.topic_name is None:
            return
        correlation = message.correlation_data
        payload = message.payload or b""
        inbound = Inbound(
            topic=message.topic_name,
            payload=payload.encode() if isinstance(payload, str) else payload,
            response_topic=message.response_topic,
            correlation_data=correlation.encode() if isinstance(correlation, str) else correlation,
            retained=bool(message.retain),
            user_properties=tuple((one.key or "", one.value or "") for one in message.user_properties or ()),
        )
        for handler in self._handlers.get(name, ()):
            try:
                handler(inbound)
            except Exception:  # one message must not end the others
                log.exception("a handler of %s failed", name)


class _Life(LifecycleHandler):  # type: ignore[misc]  # the library has no types
    """Says that the connection ended."""

    def __init__(self, lost: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = lost

    def on_disconnect(self, reason: Exception | None) -> None:
        """See the library."""
        self._tell(str(reason) if reason is not None else "the nucleus closed the connection")

    def on_error(self, error: Exception) -> bool:
        """See the library: an error of the connection ends it."""
        self._tell(str(error))
        return True


class _Arrivals(SubscribeToIoTCoreStreamHandler):  # type: ignore[misc]  # the library has no types
    """Hands over what a subscription brings."""

    def __init__(self, arrived: Callable[[IoTCoreMessage], None]) -> None:
        super().__init__()
        self._hand_on = arrived

    def on_stream_event(self, event: IoTCoreMessage) -> None:
        """See the library."""
        self._hand_on(event)
