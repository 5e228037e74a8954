"""A socket that reads and writes in large pieces for a library that asks for a byte at a time."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

_PIECE = 65_536
_OUT_AT_MOST = 4_000_000
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class BufferedSocket:
    """What paho takes for a non-blocking socket.

    paho reads a packet in four calls and writes each packet by itself; a call to the system costs more than all else it does.
    Here the owner fills the buffer when the socket can be read, and writes once for all that was handed over in between.

    Args:
        sock: The connected socket.
        written: Called at the first write after a flush, from whichever thread writes.
    """

    def __init__(self, sock: socket.socket, written: Callable[[], None]) -> None:
        self._sock = sock
        self._written = written
        self._in = b""
        self._at = 0
        self._ended = False
        self._out = bytearray()

    def fill(self) -> None:
        """Take in what has come; an error or the end is told by :meth:`recv` when all before it was read."""
        pieces = [self._in[self._at :]]
        while not self._ended:
            try:
                piece = self._sock.recv(_PIECE)
            except _NOT_NOW:
                break
            except OSError:
                self._ended = True
                break
            if not piece:
                self._ended = True
            pieces.append(piece)
            if len(piece) < _PIECE and not isinstance(self._sock, ssl.SSLSocket):
                break
        self._in, self._at = b"".join(pieces), 0

    @property
    def readable(self) -> bool:
        """Whether :meth:`recv` has something to give, or an end to tell."""
        return self._at < len(self._in) or self._ended

    @property
    def unwritten(self) -> int:
        """Bytes that wait for :meth:`flush`."""
        return len(self._out)

    def recv(self, size: int) -> bytes:
        """From memory alone."""
        found = self._in[self._at : self._at + size]
        if not found and not self._ended:
            raise BlockingIOError
        self._at += len(found)
        return found

    def send(self, content: bytes) -> int:
        """To memory alone; refuses when the peer takes nothing for long."""
        if len(self._out) > _OUT_AT_MOST:
            raise BlockingIOError
        first = not self._out
        self._out += content
        if first:
            self._written()
        return len(content)

    def flush(self) -> bool:
        """Write what waits; returns whether nothing waits any more. An error shows itself at the next read."""
        while self._out:
            try:
                done = self._sock.send(self._out)
            except _NOT_NOW:
                return False
            except OSError:
                self._out.clear()
                self._ended = True
                return True
            del self._out[:done]
        return True

    def close(self) -> None:
        """Write what the system takes at once, and close."""
        with contextlib.suppress(OSError, ValueError):
            self.flush()
        self._sock.close()

    def fileno(self) -> int:
        """Of the socket; −1 when it is closed."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """See :meth:`socket.socket.setblocking`."""
        self._sock.setblocking(flag)

    def shutdown(self, how: int) -> None:
        """See :meth:`socket.socket.shutdown`."""
        self._sock.shutdown(how)
