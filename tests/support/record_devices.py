"""Records every template from its simulation anew: python tests/support/record_devices.py FOLDER [TEMPLATE ...]."""

import asyncio
import sys
from pathlib import Path

from wattmesh_a2a.clock import ManualClock
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.modbus.line import LinePool
from wattmesh_drivers.recording import LineRecorder, NodeRecorder
from wattmesh_drivers.template import load_template, template_ids
from wattmesh_simulators.demo_fleet import free_ports
from wattmesh_simulators.device import SimulatedDevice
from wattmesh_simulators.plant.data import FIRST_NS


async def record(name: str, folder: Path) -> None:
    clock = ManualClock(FIRST_NS + 13 * 3600 * 10**9)
    device = SimulatedDevice(name, clock, strict=True)
    template = load_template(name)
    needs = template.connection.model_copy(update={"connect_delay_ms": 0, "request_gap_ms": 0})
    template = template.model_copy(update={"connection": needs})
    told = {"grade": "simulated", "device": "wattmesh simulate device --strict"}
    path, lines = folder / f"{name}.jsonl", LinePool()
    if template.protocol == "opcua":
        (port,) = free_ports(1)
        await device.serve(port=port)
        driver = create_driver("d", template, ConnectionModel(url=f"opc.tcp://127.0.0.1:{port}/"), clock)
        recorder = NodeRecorder(path, driver, clock, **told)
    else:
        await device.serve()
        device.server.connect_delay_s = 0.0
        where = ConnectionModel(host="127.0.0.1", port=device.server.port)
        driver = create_driver("d", template, where, clock, lines=lines)
        line = lines.of(where.endpoint(template))
        recorder = LineRecorder(path, line, clock, template=name, unit=needs.unit, **told)
    await driver.connect()
    for _ in range(2):
        await clock.advance(60)
        await device.step()
        assert await driver.poll(), name
        recorder.polled()
    recorder.finish({point: value for point, (value, _) in as_mapping(driver).items()})
    await driver.close()
    await device.stop()


if __name__ == "__main__":
    for one in sys.argv[2:] or template_ids():
        asyncio.run(record(one, Path(sys.argv[1])))
