"""What the service manager is told: ready, healthy, stopping. The sd_notify protocol in a few lines, so that no library is needed.

Source: systemd, sd_notify(3): datagrams of ``KEY=VALUE`` lines to the socket named by ``NOTIFY_SOCKET`` ("@": abstract namespace).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class ServiceManager:
    """Tells systemd how it goes; without systemd it tells nobody.

    Args:
        environment: Where ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` stand.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        if address[:1] in {"/", "@"}:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            with contextlib.suppress(OSError):
                self._socket.connect("\0" + address[1:] if address[0] == "@" else address)
        self.watchdog_s = int(environment.get("WATCHDOG_USEC", "0") or 0) / 1e6
        """Time without :meth:`healthy` after which the manager restarts us; 0: it does not."""
        self._ready = False

    def healthy(self, status: str) -> None:
        """A control cycle was complete, from reading to readback. Nothing else feeds the watchdog; the first makes us ready."""
        lines = ["WATCHDOG=1"]
        if not self._ready:
            self._ready = True
            lines += ["READY=1", f"STATUS={status}"]
        self._tell(lines)

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._tell([f"STATUS={text}"])

    def stopping(self) -> None:
        """The end has begun."""
        self._tell(["STOPPING=1", "STATUS=leaving the site safe"])

    def _tell(self, lines: list[str]) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # a manager that does not listen must not keep a site from working
                self._socket.send("\n".join(lines).encode())

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
