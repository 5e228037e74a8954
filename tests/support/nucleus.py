"""As much of Greengrass's nucleus as a component's MQTT needs: event-stream RPC on a Unix socket, with the lite nucleus's limits.

Past ten publishes without an answer, or with one of more than 7.2 KB, it ends the connection without a word. Source of the frames:
the vnd.amazon.event-stream encoding (length, length of headers, CRC, headers, payload, CRC) and event-stream RPC's headers.
"""

import asyncio
import base64
import json
import struct
import zlib

from wattmesh_a2a.transports.base import matches

MESSAGE, ERROR, CONNECT, CONNECT_ACK = 0, 1, 4, 5
ACCEPTED, LAST = 1, 2
MOST_BYTES, MOST_UNANSWERED = 7200, 10


def frame(stream, kind, flags, payload=b"", **more):
    headers = b""
    for name, value in ((":message-type", kind), (":message-flags", flags), (":stream-id", stream)):
        headers += bytes([len(name)]) + name.encode() + b"\x04" + struct.pack("!i", value)
    for name, value in more.items():
        name, value = name.replace("_", "-"), value.encode()
        name = f":{name}" if name == "content-type" else name
        headers += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack("!H", len(value)) + value
    head = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    body = head + struct.pack("!I", zlib.crc32(head)) + headers + payload
    return body + struct.pack("!I", zlib.crc32(body))


async def read_frame(reader):
    head = await reader.readexactly(12)
    total, length = struct.unpack("!II", head[:8])
    assert zlib.crc32(head[:8]) == struct.unpack("!I", head[8:])[0]
    rest = await reader.readexactly(total - 12)
    assert zlib.crc32(head + rest[:-4]) == struct.unpack("!I", rest[-4:])[0]
    headers, at = {}, 0
    while at < length:
        size = rest[at]
        name, kind, at = rest[at + 1 : at + 1 + size].decode(), rest[at + 1 + size], at + 2 + size
        if kind == 4:
            headers[name], at = struct.unpack("!i", rest[at : at + 4])[0], at + 4
        elif kind == 7:
            many = struct.unpack("!H", rest[at : at + 2])[0]
            headers[name], at = rest[at + 2 : at + 2 + many].decode(), at + 2 + many
        else:
            raise AssertionError(f"a header of type {kind}")
    return headers, rest[length:-4]


class Nucleus:
    """Its components' publishes go to all subscriptions, as if IoT Core were behind it.

    Args:
        path: The socket.
        answer_s: How long an answer to a publish takes.
    """

    def __init__(self, path, *, token="svc", answer_s=0.0):
        self.path, self.token, self.answer_s = path, token, answer_s
        self.published, self.ended, self.refused, self.most_unanswered = [], [], 0, 0
        self._subscriptions, self._writers, self._server, self._tasks = [], set(), None, set()

    async def __aenter__(self):
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self):
        """End all connections without a word."""
        for writer in list(self._writers):
            writer.transport.abort()
        self._subscriptions.clear()

    async def _serve(self, reader, writer):
        self._writers.add(writer)
        self._tasks.add(asyncio.current_task())
        unanswered = [0]
        try:
            while True:
                headers, payload = await read_frame(reader)
                kind, stream = headers[":message-type"], headers[":stream-id"]
                if kind == CONNECT:
                    welcome = json.loads(payload)["authToken"] == self.token
                    self.refused += not welcome
                    writer.write(frame(0, CONNECT_ACK, ACCEPTED if welcome else 0))
                elif kind == MESSAGE and headers.get("operation", "").endswith("#PublishToIoTCore"):
                    unanswered[0] += 1
                    self.most_unanswered = max(self.most_unanswered, unanswered[0])
                    fields = json.loads(payload)
                    size = len(base64.b64decode(fields.get("payload", "")))
                    if unanswered[0] > MOST_UNANSWERED or size > MOST_BYTES:
                        self.ended.append((unanswered[0], size))
                        writer.transport.abort()
                        return
                    task = asyncio.create_task(self._take(writer, stream, fields, unanswered))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                elif kind == MESSAGE and headers.get("operation", "").endswith("#SubscribeToIoTCore"):
                    self._subscriptions.append((json.loads(payload)["topicName"], stream, writer))
                    self._answer(writer, stream, 0, "SubscribeToIoTCoreResponse", {})
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            self._subscriptions = [one for one in self._subscriptions if one[2] is not writer]
            writer.close()

    async def _take(self, writer, stream, fields, unanswered):
        await asyncio.sleep(self.answer_s)
        self.published.append(fields)
        unanswered[0] -= 1
        self._answer(writer, stream, LAST, "PublishToIoTCoreResponse", {})
        self.deliver({key: value for key, value in fields.items() if key != "qos"})

    def deliver(self, message):
        """As if it came from IoT Core."""
        for name, stream, writer in self._subscriptions:
            if matches(name, message["topicName"]):
                self._answer(writer, stream, 0, "IoTCoreMessage", {"message": message})

    @staticmethod
    def _answer(writer, stream, flags, shape, fields):
        writer.write(
            frame(
                stream,
                MESSAGE,
                flags,
                json.dumps(fields).encode(),
                content_type="application/json",
                service_model_type=f"aws.greengrass#{shape}",
            )
        )
