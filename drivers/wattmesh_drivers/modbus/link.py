"""One Modbus connection: pymodbus for sockets and framing, our own checks of every answer.

pymodbus 3.16 accepts an answer with another function code and one that is too short; after a time-out a late answer could
be taken for the next one. So: each answer's unit, function and length are checked here, nothing is repeated behind our back,
and after any doubt the connection is dropped, so that no late answer can ever arrive on it.
"""

from __future__ import annotations

import asyncio
import logging
from array import array

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

_ILLEGAL = {1: "function not supported", 2: "no such register", 3: "value refused"}

logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # every failure is reported once, by us


class RefusedError(ConfigurationError):
    """The device answered with an exception that asking again does not change.

    Attributes:
        code: The exception code of the Modbus application protocol, section 7.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ModbusLink:
    """Registers of one unit at one TCP endpoint; requests go one at a time.

    Args:
        host: Of the device or its gateway.
        port: TCP port.
        unit: Unit identifier.
        timeout_s: Longest wait for one answer, in real time.
        gap_s: Pause the device needs between two requests.
        connect_delay_s: Pause it needs after the connection is made.
    """

    def __init__(
        self, host: str, port: int, unit: int, *, timeout_s: float, gap_s: float = 0.0, connect_delay_s: float = 0.0
    ) -> None:
        self.host, self.port, self.unit = host, port, unit
        self._timeout_s = timeout_s
        self._gap_s = gap_s
        self._connect_delay_s = connect_delay_s
        self._client: AsyncModbusTcpClient | None = None
        self._lock = asyncio.Lock()
        self._free_at = 0.0

    async def open(self) -> None:
        """Connect; raises :class:`UnavailableError`."""
        self.close()
        client = AsyncModbusTcpClient(
            self.host, port=self.port, timeout=self._timeout_s, retries=0, reconnect_delay=0, name=f"unit {self.unit}"
        )
        try:
            connected = await client.connect()
        except (OSError, ModbusException, TimeoutError) as error:
            client.close()
            raise UnavailableError(f"{self.host}:{self.port}: {error}") from error
        if not connected:
            client.close()
            raise UnavailableError(f"nothing answers at {self.host}:{self.port}")
        self._client = client
        if self._connect_delay_s:
            await asyncio.sleep(self._connect_delay_s)

    def close(self) -> None:
        """Drop the connection, and with it every answer that may still come."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def read(self, function: int, address: int, count: int) -> array[int]:
        """``count`` registers as an array of type ``H``.

        Raises:
            UnavailableError: No answer, or one that is not of this request; the connection is closed then.
            RefusedError: The device will not.
        """
        client = self._connected()
        call = client.read_holding_registers if function == 3 else client.read_input_registers
        async with self._lock:
            answer = await self._ask(call(address, count=count, device_id=self.unit), f"read of {address}+{count}")
        self._check(answer, function)
        registers = answer.registers
        if len(registers) != count:
            self.close()
            raise UnavailableError(f"unit {self.unit} answered {len(registers)} registers instead of {count}")
        return array("H", registers)

    async def write(self, function: int, address: int, registers: list[int]) -> None:
        """Write registers with function 6 (one) or 16; raises as :meth:`read` does."""
        client = self._connected()
        async with self._lock:
            if function == 6:
                request = client.write_register(address, registers[0], device_id=self.unit)
            else:
                request = client.write_registers(address, registers, device_id=self.unit)
            answer = await self._ask(request, f"write of {address}")
        self._check(answer, function)
        if answer.address != address:
            self.close()
            raise UnavailableError(f"unit {self.unit} confirmed register {answer.address} instead of {address}")

    def _connected(self) -> AsyncModbusTcpClient:
        if self._client is None:
            raise UnavailableError(f"not connected to {self.host}:{self.port}")
        return self._client

    async def _ask(self, request: object, what: str) -> ModbusPDU:
        loop = asyncio.get_running_loop()
        if self._gap_s and (wait := self._free_at - loop.time()) > 0:
            await asyncio.sleep(wait)
        try:
            answer: ModbusPDU = await request  # type: ignore[misc]  # pymodbus types its mixin's calls as T
        except (ModbusException, OSError, TimeoutError) as error:
            self.close()
            raise UnavailableError(f"{what} at {self.host}:{self.port} unit {self.unit}: no answer") from error
        except asyncio.CancelledError:
            self.close()  # an answer may still be under way
            raise
        self._free_at = loop.time() + self._gap_s
        return answer

    def _check(self, answer: ModbusPDU, function: int) -> None:
        if answer.dev_id != self.unit or answer.function_code & 0x7F != function:
            self.close()
            raise UnavailableError(f"unit {self.unit} gave an answer to another request")
        if answer.isError():
            code = int(getattr(answer, "exception_code", 0))
            if code in _ILLEGAL:
                raise RefusedError(code, f"unit {self.unit} refuses: {_ILLEGAL[code]} (exception {code})")
            raise UnavailableError(f"unit {self.unit} is busy or failing (exception {code})")
