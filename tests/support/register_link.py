"""A Modbus device as a dict, without a socket; and templates and drivers for it."""

from array import array

from wattmesh_a2a.clock import ManualClock
from wattmesh_drivers.modbus.driver import ModbusDriver
from wattmesh_drivers.modbus.link import RefusedError
from wattmesh_drivers.template import Template


class Registers:
    """A link to a device that is a dict of registers; what is not in it is refused with exception 2."""

    name, unit, shared, probing, plain_tcp = "a dict", 1, False, False, ("127.0.0.1", 502)

    def __init__(self, registers):
        self.registers = registers
        self.opened = self.closed = 0
        self.written = []

    async def open(self):
        self.opened += 1

    def close(self):
        self.closed += 1

    async def read_many(self, requests):
        found = []
        for request in requests:
            try:
                found.append(await self.read(*request))
            except RefusedError as error:
                found.append(error)
        return found

    async def read(self, _function, address, count):
        wanted = range(address, address + count)
        if not all(register in self.registers for register in wanted):
            raise RefusedError(2, "no such register")
        return array("H", [self.registers[register] for register in wanted])

    async def write(self, function, address, registers):
        self.written.append((function, address, registers))


def template(points, *, kind="load", protocol="modbus", **more):
    data = {"template": 1, "id": "mine", "kind": kind, "manufacturer": "Me", "products": ["one"], "protocol": protocol}
    return Template.model_validate(data | {"points": points, "sources": ["a test"]} | more)


def plain(name, address, **more):
    return {"id": name, "function": 3, "address": address, "type": "u16"} | more


def driver(link, made, clock=None, **more):
    return ModbusDriver("d", made, link, clock or ManualClock(), **more)
