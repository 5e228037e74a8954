"""Publishing to a broker that is not the fleet's: an owner's Home Assistant. Retained messages, a will, reconnecting by itself."""

from __future__ import annotations

import threading
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from wattmesh_a2a.transports.mqtt import parse_broker_url


class Publisher:
    """See the module.

    Args:
        url: ``mqtts://host:port``, or ``mqtt://`` for loopback.
        client_id: Name at that broker.
        user: Where it asks for one.
        password: Its password.
        ca: Of the broker's certificate; the system's where left out.

    Raises:
        ConfigurationError: An address that cannot be used.
    """

    def __init__(
        self, url: str, client_id: str, *, user: str | None = None, password: str | None = None, ca: Path | None = None
    ) -> None:
        self._host, self._port, encrypted = parse_broker_url(url)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        self._client.max_queued_messages_set(100)
        self._client.reconnect_delay_set(1, 60)
        if user is not None:
            self._client.username_pw_set(user, password)
        if encrypted:
            self._client.tls_set(ca_certs=None if ca is None else str(ca))
        self._client.on_connect = self._on_connect
        self._new = threading.Event()

    def _on_connect(self, *_: object) -> None:
        self._new.set()

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._client.is_connected()

    def fresh(self) -> bool:
        """Whether a connection was made since this was last asked."""
        if not self._new.is_set():
            return False
        self._new.clear()
        return True

    def start(self, will_topic: str, will: str) -> None:
        """Connect, now or as soon as the broker is there; the will is left where the connection breaks."""
        self._client.will_set(will_topic, will, qos=1, retain=True)
        self._client.connect_async(self._host, self._port, keepalive=30)
        self._client.loop_start()

    def publish(self, topic: str, payload: str, *, retain: bool) -> None:
        """Send, at least once while connected."""
        self._client.publish(topic, payload, qos=1, retain=retain)

    def stop(self) -> None:
        """Say goodbye."""
        self._client.disconnect()
        self._client.loop_stop()
