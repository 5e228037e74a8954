"""libmodbus by ctypes: an independent server and client for tests and benchmarks.

    python libmodbus.py tcp UNIT            serves a free port and prints it
    python libmodbus.py rtu PATH BAUD UNIT  serves a serial port and prints "ready"

Register ``n`` holds ``n & 0xFFFF``; holding registers below 1000 can be written. Ends when its standard input does.
"""

import ctypes
import ctypes.util
import os
import socket
import sys
import threading

REGISTERS = 2000


def library():
    """The library; none where it is not installed (Debian: libmodbus5)."""
    for name in ("libmodbus.so.5", "libmodbus.so.6", ctypes.util.find_library("modbus")):
        if name is None:
            continue
        try:
            found = ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
        found.modbus_new_tcp.restype = found.modbus_new_rtu.restype = ctypes.c_void_p
        found.modbus_mapping_new.restype = ctypes.POINTER(Mapping)
        found.modbus_strerror.restype = ctypes.c_char_p
        found.modbus_new_tcp.argtypes = [ctypes.c_char_p, ctypes.c_int]
        found.modbus_new_rtu.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_char, ctypes.c_int, ctypes.c_int]
        for call, kinds in {
            "modbus_connect": [], "modbus_close": [], "modbus_free": [], "modbus_set_slave": [ctypes.c_int],
            "modbus_set_socket": [ctypes.c_int], "modbus_receive": [ctypes.c_char_p],
            "modbus_reply": [ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(Mapping)],
            "modbus_read_registers": [ctypes.c_int, ctypes.c_int, ctypes.c_void_p],
            "modbus_read_input_registers": [ctypes.c_int, ctypes.c_int, ctypes.c_void_p],
            "modbus_write_register": [ctypes.c_int, ctypes.c_uint16],
            "modbus_write_registers": [ctypes.c_int, ctypes.c_int, ctypes.c_void_p],
        }.items():  # fmt: skip
            getattr(found, call).argtypes = [ctypes.c_void_p, *kinds]
        return found
    return None


class Mapping(ctypes.Structure):
    _fields_ = [
        ("nb_bits", ctypes.c_int), ("start_bits", ctypes.c_int),
        ("nb_input_bits", ctypes.c_int), ("start_input_bits", ctypes.c_int),
        ("nb_input_registers", ctypes.c_int), ("start_input_registers", ctypes.c_int),
        ("nb_registers", ctypes.c_int), ("start_registers", ctypes.c_int),
        ("tab_bits", ctypes.c_void_p), ("tab_input_bits", ctypes.c_void_p),
        ("tab_input_registers", ctypes.POINTER(ctypes.c_uint16)), ("tab_registers", ctypes.POINTER(ctypes.c_uint16)),
    ]  # fmt: skip


class Client:
    """A client of libmodbus, blocking."""

    def __init__(self, lib, *, port=None, serial=None, baud=115200, unit=1):
        self.lib = lib
        new = lib.modbus_new_tcp(b"127.0.0.1", port) if port else lib.modbus_new_rtu(serial.encode(), baud, b"N", 8, 1)
        self.context = ctypes.c_void_p(new)
        lib.modbus_set_slave(self.context, unit)
        if lib.modbus_connect(self.context) < 0:
            raise OSError(lib.modbus_strerror(ctypes.get_errno()).decode())

    def read(self, function, address, count):
        buffer = (ctypes.c_uint16 * count)()
        call = self.lib.modbus_read_registers if function == 3 else self.lib.modbus_read_input_registers
        self._check(call(self.context, address, count, buffer))
        return list(buffer)

    def write(self, address, values):
        if len(values) == 1:
            self._check(self.lib.modbus_write_register(self.context, address, values[0]))
            return
        buffer = (ctypes.c_uint16 * len(values))(*values)
        self._check(self.lib.modbus_write_registers(self.context, address, len(values), buffer))

    def _check(self, answer):
        if answer < 0:
            raise OSError(self.lib.modbus_strerror(ctypes.get_errno()).decode())

    def close(self):
        self.lib.modbus_close(self.context)
        self.lib.modbus_free(self.context)


def mapping(lib):
    found = lib.modbus_mapping_new(0, 0, REGISTERS, REGISTERS)
    for register in range(REGISTERS):
        found.contents.tab_registers[register] = register & 0xFFFF
        found.contents.tab_input_registers[register] = register & 0xFFFF
    return found


def serve(lib, context, registers):
    query = ctypes.create_string_buffer(260)
    while (length := lib.modbus_receive(context, query)) >= 0:
        if length > 0 and lib.modbus_reply(context, query, length, registers) < 0:
            return


def serve_tcp(lib, unit, registers):
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        threading.Thread(target=serve_connection, args=(lib, connection.detach(), unit, registers), daemon=True).start()


def serve_connection(lib, number, unit, registers):
    context = ctypes.c_void_p(lib.modbus_new_tcp(b"127.0.0.1", 502))
    lib.modbus_set_slave(context, unit)
    lib.modbus_set_socket(context, number)
    serve(lib, context, registers)
    lib.modbus_close(context)
    lib.modbus_free(context)


def serve_rtu(lib, path, baud, unit, registers):
    context = ctypes.c_void_p(lib.modbus_new_rtu(path.encode(), baud, b"N", 8, 1))
    lib.modbus_set_slave(context, unit)
    if lib.modbus_connect(context) < 0:
        sys.exit(f"{path}: {lib.modbus_strerror(ctypes.get_errno()).decode()}")
    print("ready", flush=True)
    while True:
        serve(lib, context, registers)  # a frame for somebody else, or a broken one: go on


def main():
    lib = library()
    if lib is None:
        sys.exit("libmodbus is not installed")
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    registers = mapping(lib)
    if sys.argv[1] == "tcp":
        serve_tcp(lib, int(sys.argv[2]), registers)
    else:
        serve_rtu(lib, sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), registers)


if __name__ == "__main__":
    main()
