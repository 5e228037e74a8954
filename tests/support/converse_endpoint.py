"""Amazon Bedrock's Converse API on loopback, exact on the wire: signatures checked, requests validated, streams framed by hand.

What it answers is a script, one step a request: see the functions at the end. Written from the API reference and the event-stream
encoding (Smithy: prelude, headers, payload, two CRC-32s), not from botocore, which is the other side; botocore's service model only
says whether a request is a valid one.
"""

import hashlib
import hmac
import json
import re
import struct
import threading
import urllib.parse
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import botocore.session
import botocore.validate

ACCESS_KEY, SECRET_KEY = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of an event stream."""
    head = b"".join(
        struct.pack("!B", len(name)) + name.encode() + b"\x07" + struct.pack("!H", len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack("!I", zlib.crc32(message))


def event(kind: str, body: dict) -> bytes:
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return frame(headers, json.dumps(body).encode())


def fault(kind: str, message: str) -> bytes:
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, json.dumps({"message": message}).encode())


@dataclass
class Answer:
    """What one request gets."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    cut: bool = False
    """The connection ends in the middle."""
    hang: bool = False
    """Nothing more comes until the endpoint is closed."""


def answered(*blocks: list[tuple[str, dict]], stop: str = "end_turn", usage: tuple[int, int] = (100, 20)) -> Answer:
    """A whole stream of content blocks."""
    chunks = [event("messageStart", {"role": "assistant"})]
    for index, deltas in enumerate(blocks):
        for kind, body in deltas:
            chunks.append(event(kind, {"contentBlockIndex": index, **body}))
        chunks.append(event("contentBlockStop", {"contentBlockIndex": index}))
    chunks.append(event("messageStop", {"stopReason": stop}))
    counts = {"inputTokens": usage[0], "outputTokens": usage[1], "totalTokens": sum(usage)}
    chunks.append(event("metadata", {"usage": counts, "metrics": {"latencyMs": 5}}))
    return Answer(chunks=chunks)


def text_block(text: str, pieces: int = 3) -> list[tuple[str, dict]]:
    size = max(1, -(-len(text) // pieces))
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    return [("contentBlockDelta", {"delta": {"text": part}}) for part in parts]


def tool_block(name: str, arguments: object, number: int = 1, *, raw: str | None = None) -> list[tuple[str, dict]]:
    text = json.dumps(arguments) if raw is None else raw
    half = len(text) // 2
    start = ("contentBlockStart", {"start": {"toolUse": {"toolUseId": f"tooluse_{number}", "name": name}}})
    return [
        start,
        *(("contentBlockDelta", {"delta": {"toolUse": {"input": part}}}) for part in (text[:half], text[half:])),
    ]


def text(words: str, **more) -> Answer:
    return answered(text_block(words), **more)


def tools(*calls: tuple[str, object], **more) -> Answer:
    blocks = [tool_block(name, arguments, number) for number, (name, arguments) in enumerate(calls)]
    return answered(*blocks, stop="tool_use", **more)


def refused(code: str, message: str, status: int = 400) -> Answer:
    headers = {"x-amzn-ErrorType": f"{code}:http://internal.amazon.com/coral/com.amazon.bedrock/"}
    return Answer(status=status, headers=headers, chunks=[json.dumps({"message": message}).encode()])


Script = Callable[[dict], Answer]


class ConverseEndpoint:
    """Serves a script; keeps every request that it found valid, and what was wrong with the others."""

    def __init__(self, *steps: Answer | Script, secret: str = SECRET_KEY) -> None:
        self.steps = list(steps)
        self.secret = secret
        self.requests: list[dict] = []
        self.wrong: list[str] = []
        self.closing = threading.Event()
        self._model = botocore.session.Session().get_service_model("bedrock-runtime")
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                endpoint._serve(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, handler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        answer = self._checked(handler, body) or self._step(handler, body)
        handler.send_response(answer.status)
        kind = "application/vnd.amazon.eventstream" if answer.status == 200 else "application/json"
        for name, value in {"Content-Type": kind, "Transfer-Encoding": "chunked", **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            for chunk in answer.chunks:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                handler.wfile.flush()
            if answer.hang:
                self.closing.wait(30)
            if answer.cut or answer.hang:
                handler.close_connection = True
                return
            handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            handler.close_connection = True

    def _step(self, handler, body: bytes) -> Answer:
        request = json.loads(body)
        self.requests.append(request)
        if not self.steps:
            return refused("InternalServerException", "the script is over", 500)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        return step(request) if callable(step) else step

    # -- what the service itself would refuse

    def _checked(self, handler, body: bytes) -> Answer | None:
        match = re.fullmatch(r"/model/([^/]+)/converse-stream", handler.path)
        if match is None:
            return self._no("UnknownOperationException", f"no operation {handler.path}", 404)
        wrong = self._signature(handler, body)
        if wrong is not None:
            return self._no("InvalidSignatureException", wrong, 403)
        try:
            parameters = {"modelId": urllib.parse.unquote(match[1]), **json.loads(body)}
        except ValueError as error:
            return self._no("SerializationException", str(error), 400)
        shape = self._model.operation_model("ConverseStream").input_shape
        report = botocore.validate.ParamValidator().validate(parameters, shape)
        if report.has_errors():
            return self._no("ValidationException", report.generate_report(), 400)
        roles = [message["role"] for message in parameters["messages"]]
        if any(role != ("user", "assistant")[index % 2] for index, role in enumerate(roles)):
            return self._no("ValidationException", f"roles must alternate between user and assistant: {roles}", 400)
        return None

    def _no(self, code: str, message: str, status: int) -> Answer:
        self.wrong.append(f"{code}: {message}")
        return refused(code, message, status)

    def _signature(self, handler, body: bytes) -> str | None:
        """AWS Signature Version 4, computed anew; none where it is right."""
        match = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, ?"
            r"SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})",
            handler.headers.get("Authorization", ""),
        )
        if match is None:
            return "no signature"
        key, day, region, service, signed, signature = match.groups()
        if key != ACCESS_KEY or service != "bedrock":
            return f"unknown key {key} or service {service}"
        if "host" not in signed.split(";") or "x-amz-date" not in signed.split(";"):
            return "host and date have to be signed"
        path = "/".join(urllib.parse.quote(part, safe="-_.~") for part in handler.path.split("/"))
        lines = [f"{name}:{' '.join(handler.headers[name].split())}" for name in signed.split(";")]
        request = "\n".join(["POST", path, "", *lines, "", signed, hashlib.sha256(body).hexdigest()])
        scope = f"{day}/{region}/{service}/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        string = "\n".join(["AWS4-HMAC-SHA256", handler.headers["X-Amz-Date"], scope, digest])
        secret = f"AWS4{self.secret}".encode()
        for part in (day, region, service, "aws4_request"):
            secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        right = hmac.new(secret, string.encode(), hashlib.sha256).hexdigest()
        return None if hmac.compare_digest(right, signature) else "the signature does not fit the request"


def results_of(request: dict) -> list[dict]:
    """The tool results that a request carries, as its last message."""
    return [block["toolResult"] for block in request["messages"][-1]["content"] if "toolResult" in block]
