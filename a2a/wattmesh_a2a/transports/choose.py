"""The transport that a configuration's ``broker`` names; only the chosen one is imported."""

from __future__ import annotations

from pathlib import Path

from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.transports.base import Transport
from wattmesh_a2a.transports.mqtt import MqttTransport, parse_broker_url

GREENGRASS = "greengrass:"
_IOT_CORE = "iot-core://"


def check_broker(url: str) -> None:
    """Raise :class:`ConfigurationError` where ``url`` names no way to a broker.

    ``mqtt://host`` (loopback), ``mqtts://host``, ``iot-core://ENDPOINT`` (AWS's own client, extra ``iot``), or ``greengrass:``
    (through the nucleus that started this process, extra ``greengrass``).
    """
    if url != GREENGRASS:
        parse_broker_url(url.replace(_IOT_CORE, "mqtts://", 1))


def transport_for(
    url: str, client_id: str, *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> Transport:
    """A transport that is not started; see :func:`check_broker` for the URLs.

    Raises:
        ConfigurationError: No such way, files that it needs are not given, or its extra is not installed.
    """
    check_broker(url)
    if url != GREENGRASS and not url.startswith(_IOT_CORE):
        return MqttTransport(url, client_id, ca=ca, certificate=certificate, key=key)
    try:
        if url == GREENGRASS:
            from wattmesh_a2a.transports.greengrass import GreengrassTransport

            return GreengrassTransport()
        from wattmesh_a2a.transports.aws import AwsIotTransport
    except ModuleNotFoundError as error:
        extra = "greengrass" if url == GREENGRASS else "iot"
        raise ConfigurationError(f"broker {url}: needs awsiotsdk; install wattmesh[{extra}]") from error
    if certificate is None or key is None:
        raise ConfigurationError(f"broker {url}: give certificate and key of the thing")
    return AwsIotTransport(url.replace(_IOT_CORE, "mqtts://", 1), client_id, certificate=certificate, key=key, ca=ca)
