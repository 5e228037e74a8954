"""A site's devices at the gateway's start and end: safe state first, safe state last, and proxies for others between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from wattmesh_a2a.control import Applied, Failed
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_drivers.driver import Driver, DriverState
from wattmesh_drivers.modbus.line import LinePool
from wattmesh_drivers.modbus.proxy import ModbusProxy

from wattmesh_edge.config import DeviceModel, Site

log = logging.getLogger(__name__)

LEAVE_WITHIN_S, _LEAVE_AGAIN_S = 10.0, 0.5
"""How long a device that does not answer is tried to be left in its safe state."""
_START_S = 2.0
"""Real time that devices have to answer in before the site starts without them."""


class SiteDevices:
    """Connects and leaves them.

    Args:
        site: The site.
        drivers: By device.
        lines: Shared by the drivers and the proxies.
        was_made_safe: Told of each device that was given its safe state before the first cycle.
    """

    def __init__(
        self, site: Site, drivers: Mapping[str, Driver], lines: LinePool, was_made_safe: Callable[[str], None]
    ) -> None:
        self._site = site
        self._drivers = drivers
        self._lines = lines
        self._was_made_safe = was_made_safe
        self._proxies: list[ModbusProxy] = []

    async def connect(self) -> None:
        """Safe state first. A device that is absent does not keep the others from working."""
        starting = {
            asyncio.create_task(self._connect_one(name, driver), name=f"connect {name}")
            for name, driver in self._drivers.items()
        }
        _, slow = await asyncio.wait(starting, timeout=2 * _START_S)
        for task in slow:  # the cycle tries them again, off to the side
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        for device in self._site.model.devices:
            if device.connection.proxy_port is not None:
                proxy = self._proxy_of(device)
                try:
                    await proxy.start(device.connection.proxy_host, device.connection.proxy_port)
                except ConfigurationError as error:
                    log.error("%s; the site goes on without it", error)
                    continue
                self._proxies.append(proxy)

    def _proxy_of(self, device: DeviceModel) -> ModbusProxy:
        template = self._site.templates[device.id]
        line = self._lines.of(device.connection.endpoint(template))
        assert line is not None, "its driver has taken it"
        return ModbusProxy(line)

    async def _connect_one(self, name: str, driver: Driver) -> None:
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
        self._was_made_safe(name)

    async def leave(self) -> None:
        """All of them at once, each in its own time; then the proxies."""
        await asyncio.gather(*(leave(name, driver) for name, driver in self._drivers.items()))
        for proxy in self._proxies:
            await proxy.stop()


async def leave(name: str, driver: Driver) -> None:
    """Safe state, then the device's own management, then goodbye; one that does not answer is tried for a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LEAVE_WITHIN_S
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
