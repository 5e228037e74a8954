"""What a site shows by itself: a page, its state as JSON, and Prometheus metrics, on loopback and to read only.

A few lines of HTTP/1.1 on asyncio streams: GET alone, one answer a connection, bounded in size and time. A request whose ``Host``
is no loopback name is refused, so that no web page elsewhere can read a site by a name that it points here (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files

log = logging.getLogger(__name__)

_REQUEST_BYTES = 8192
_REQUEST_S = 5.0
_AT_ONCE = 16
"""Connections; one more is refused: a browser left open must not cost a gateway its memory."""
_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
}

Answer = tuple[str, bytes]
"""Content type and body."""
Number = int | float


class LocalServer:
    """Serves a few paths.

    Args:
        pages: Path → what answers it; called with the query as text. It must not block.
    """

    def __init__(self, pages: Mapping[str, Callable[[str], Answer]]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._busy = 0
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: The port is taken.
        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=_REQUEST_BYTES)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._busy += 1
        try:
            if self._busy <= _AT_ONCE:
                async with asyncio.timeout(_REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head.decode("latin-1")))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked went away, or asked for too long: nothing that a site has to know of
        finally:
            self._busy -= 1
            writer.close()

    def _answer(self, head: str) -> bytes:
        lines = head.split("\r\n")
        words = lines[0].split(" ")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(400)
        if words[0] != "GET":
            return _response(405)
        host = fields.get("host", "")
        if (host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host).lower() not in _NAMES:
            return _response(403)
        path, _, query = words[1].partition("?")
        page = self._pages.get(path)
        if page is None:
            return _response(404)
        try:
            kind, body = page(query)
        except Exception:
            log.exception("the local page %s failed", path)
            return _response(500)
        return _response(200, kind, body)


def _response(status: int, kind: str = "text/plain; charset=utf-8", body: bytes | None = None) -> bytes:
    content = f"{status} {_REASONS[status]}\n".encode() if body is None else body
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n"
        "Content-Security-Policy: default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\r\n\r\n"
    )
    return head.encode() + content


def page(_query: str) -> Answer:
    """The site's page."""
    return "text/html; charset=utf-8", files("wattmesh_edge").joinpath("local.html").read_bytes()


def as_json(value: object) -> Answer:
    """A JSON answer."""
    return "application/json", json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def metrics_text(rows: Iterable[tuple[str, str, str, Mapping[str, str], Number | None]]) -> Answer:
    """Prometheus's text format, version 0.0.4.

    Args:
        rows: ``(name, kind, help, labels, value)`` of each sample, samples of a name together; a value of none is left out.
    """
    lines: list[str] = []
    told = ""
    for name, kind, text, labels, value in rows:
        if value is None:
            continue
        if name != told:
            told = name
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")
    return "text/plain; version=0.0.4; charset=utf-8", ("\n".join(lines) + "\n").encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
