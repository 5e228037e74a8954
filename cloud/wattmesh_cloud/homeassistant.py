"""A site in its owner's Home Assistant: MQTT discovery (device-based, Home Assistant 2024.11 or newer) and the newest values.

Everything is read-only: sensors of power, charge and energy, and whether the site wants somebody's eyes. The broker is the
owner's; the fleet's own is never given to anybody.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel
from wattmesh_a2a.transports.publisher import Publisher

from wattmesh_cloud.view import CloudView

_SENSORS: tuple[tuple[str, str, str, str, str], ...] = (
    ("grid_w", "Grid power", "W", "power", "{{ value_json.grid_w }}"),
    ("pv_w", "Production", "W", "power", "{{ value_json.pv_w }}"),
    ("battery_w", "Battery power", "W", "power", "{{ value_json.battery_w }}"),
    ("load_w", "Load", "W", "power", "{{ value_json.load_w }}"),
    ("soc_percent", "State of charge", "%", "battery", "{{ value_json.soc_percent }}"),
    ("frequency_hz", "Frequency", "Hz", "frequency", "{{ value_json.frequency_hz }}"),
)


class HomeAssistantModel(StrictModel):
    """One site and its owner's broker."""

    site: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    broker: str = Field(description="mqtts://host:8883; mqtt:// for loopback alone")
    user: str | None = None
    password: Path | None = None
    ca: Path | None = None
    prefix: str = Field(default="homeassistant", pattern=r"^[A-Za-z0-9_/-]{1,64}$")
    every_s: float = Field(default=10.0, ge=1, le=3600)


def discovery(site: str, base: str) -> dict[str, Any]:
    """The retained description of a site as one device with its sensors."""
    unique = f"wattmesh_{site}".replace(".", "_")
    components: dict[str, Any] = {
        key: {
            "platform": "sensor",
            "name": name,
            "unique_id": f"{unique}_{key}",
            "device_class": kind,
            "state_class": "measurement",
            "unit_of_measurement": unit,
            "value_template": template,
        }
        for key, name, unit, kind, template in _SENSORS
    }
    components["problem"] = {
        "platform": "binary_sensor",
        "name": "Problem",
        "unique_id": f"{unique}_problem",
        "device_class": "problem",
        "value_template": "{{ 'ON' if value_json.problem else 'OFF' }}",
    }
    return {
        "device": {"identifiers": [unique], "name": f"WattMesh {site}", "manufacturer": "WattMesh", "model": "Site"},
        "origin": {"name": "WattMesh"},
        "state_topic": f"{base}/state",
        "availability_topic": f"{base}/available",
        "components": components,
    }


def state(view: CloudView, site: str) -> dict[str, Any]:
    """The newest values; production positive, as Home Assistant shows it."""
    row = view.site(site)
    flows = {key: row["flows"].get(key) for key, *_ in _SENSORS}
    if flows["pv_w"] is not None:
        flows["pv_w"] = -flows["pv_w"]
    return {**flows, "problem": row["problem"]}


class HomeAssistant:
    """Keeps one site told.

    Args:
        model: The section of the file.
        view: Where values come from.
        publisher: To the owner's broker; connected by this class.
    """

    def __init__(self, model: HomeAssistantModel, view: CloudView, publisher: Publisher) -> None:
        self._model, self._view, self._publisher = model, view, publisher
        self._base = f"wattmesh/{model.site}"

    async def run(self) -> None:
        """Tell, for ever, in real time; the broker's absence costs nothing but this."""
        await asyncio.to_thread(self._publisher.start, f"{self._base}/available", "offline")
        try:
            while True:
                if self._publisher.fresh():
                    self.describe()
                if self._publisher.connected:
                    values = json.dumps(state(self._view, self._model.site))
                    self._publisher.publish(f"{self._base}/state", values, retain=False)
                    here = self._model.site in self._view.online
                    self._publisher.publish(f"{self._base}/available", "online" if here else "offline", retain=True)
                await asyncio.sleep(self._model.every_s)
        finally:
            self._publisher.stop()

    def describe(self) -> None:
        """Publish the retained description."""
        topic = f"{self._model.prefix}/device/wattmesh_{self._model.site.replace('.', '_')}/config"
        self._publisher.publish(topic, json.dumps(discovery(self._model.site, self._base)), retain=True)
