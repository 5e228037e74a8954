"""A small Modbus TCP device of its own process: a frequency and a voltage to read, a setpoint to write, and faults on demand.

    python register_server.py LOG     prints its port; LOG gets a line for each request of interest: what, monotonic ns, value

Its own process, so that a test may hold the interpreter's lock while the device goes on.
"""

import socketserver
import struct
import sys
import threading
import time

FREQUENCY, VOLTAGE, SETPOINT, COMMAND = 0, 2, 10, 100


class Device:
    def __init__(self, log):
        self.log, self.lock = log, threading.Lock()
        self.frequency, self.voltage, self.setpoint = 60.0, 230.0, 0
        self.fault, self.reads = None, 0

    def write_log(self, what, value):
        with self.lock:
            self.log.write(f"{what} {time.monotonic_ns()} {value}\n")
            self.log.flush()


FAULTS = (None, "silence", "exception", "garbage", "close", "drop_idle", "wrong_transaction")


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        device = self.server.device
        while True:
            header = self.take(7)
            if header is None:
                return
            transaction, _, length, unit = struct.unpack(">HHHB", header)
            pdu = self.take(length - 1)
            if pdu is None:
                return
            answer = self.answer(device, pdu)
            if answer is None:
                continue
            if device.fault == "wrong_transaction" and pdu[0] == 4:
                transaction ^= 1
            self.request.sendall(struct.pack(">HHHB", transaction, 0, len(answer) + 1, unit) + answer)

    def take(self, count):
        data = b""
        while len(data) < count:
            part = self.request.recv(count - len(data))
            if not part:
                return None
            data += part
        return data

    def answer(self, device, pdu):
        function, address = pdu[0], struct.unpack_from(">H", pdu, 1)[0]
        if function == 6 and address >= COMMAND:  # the test's own way in: frequency, voltage, fault
            value = struct.unpack_from(">h", pdu, 3)[0]
            if address == COMMAND:
                device.frequency = 60 + value / 1000
                device.write_log("frequency", device.frequency)
            elif address == COMMAND + 1:
                device.voltage = float(value)
            else:
                device.fault = FAULTS[value]
            return pdu
        if function == 4:
            if device.fault == "silence":
                return None
            if device.fault == "close":
                self.request.close()
                raise ConnectionAbortedError
            device.reads += 1
            count = struct.unpack_from(">H", pdu, 3)[0]
            wobble = 1e-5 * (device.reads % 2)  # every read is a renewed value
            image = struct.pack(">ff", device.frequency + wobble, device.voltage)
            data = image[2 * address : 2 * (address + count)]
            if device.fault == "garbage":
                return bytes([4, 77]) + data
            return bytes([4, len(data)]) + data
        if function == 3:
            return bytes([3, 4]) + struct.pack(">i", device.setpoint)
        if function == 16:
            value = struct.unpack_from(">i", pdu, 6)[0]
            if device.fault == "exception":
                device.write_log("refused", value)
                return bytes([0x90, 4])
            if device.fault == "drop_idle":
                device.fault = None
                self.request.close()
                raise ConnectionAbortedError
            device.setpoint = value
            device.write_log("setpoint", value)
            return pdu[:5]
        return bytes([function | 0x80, 1])


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request, client_address):
        pass


if __name__ == "__main__":
    with open(sys.argv[1], "a", encoding="ascii") as log, Server(("127.0.0.1", 0), Handler) as server:  # noqa: PTH123
        server.device = Device(log)
        print(server.server_address[1], flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()  # ends with the test
