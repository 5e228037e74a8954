"""Records every Modbus template from its simulation anew: python tests/support/record_devices.py FOLDER [TEMPLATE ...]."""

import asyncio
import sys
from pathlib import Path

from wattmesh_a2a.clock import ManualClock
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.modbus.line import LinePool
from wattmesh_drivers.recording import Recorder
from wattmesh_drivers.template import load_template, template_ids
from wattmesh_simulators.device import SimulatedDevice
from wattmesh_simulators.plant.data import FIRST_NS


async def record(name: str, folder: Path) -> None:
    clock = ManualClock(FIRST_NS + 13 * 3600 * 10**9)
    device = SimulatedDevice(name, clock, strict=True)
    await device.serve()
    device.server.connect_delay_s = 0.0
    template = load_template(name)
    needs = template.connection.model_copy(update={"connect_delay_ms": 0, "request_gap_ms": 0})
    template = template.model_copy(update={"connection": needs})
    where = ConnectionModel(host="127.0.0.1", port=device.server.port)
    lines = LinePool()
    driver = create_driver("d", template, where, clock, lines=lines)
    recorder = Recorder(
        folder / f"{name}.jsonl", lines.of(where.endpoint(template)), clock, template=name, unit=needs.unit,
        grade="simulated", device="wattmesh simulate device --strict",
    )  # fmt: skip
    await driver.connect()
    for _ in range(2):
        await clock.advance(60)
        await device.step()
        assert await driver.poll(), name
    recorder.finish({point: value for point, (value, _) in as_mapping(driver).items()})
    await driver.close()
    await device.stop()


if __name__ == "__main__":
    wanted = sys.argv[2:] or [one for one in template_ids() if load_template(one).protocol != "opcua"]
    for one in wanted:
        asyncio.run(record(one, Path(sys.argv[1])))
