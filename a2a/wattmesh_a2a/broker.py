"""A broker for loopback, without root: mosquitto where found, else fetched, else a small one of our own.

For the demo, tests and benches. Production is mosquitto with TLS and an access list, or AWS IoT Core.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import importlib.resources
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from wattmesh_a2a.errors import ConfigurationError, UnavailableError

log = logging.getLogger(__name__)

_FETCH_S = 60
_START_S = 10.0
_PACKAGES = ("mosquitto", "libcjson1", "libdlt2", "libwebsockets17", "libev4", "libuv1", "libmosquitto1")
"""mosquitto and the libraries it links on Debian and Ubuntu that a small installation lacks."""


class BrokerProcess:
    """A broker as a child process: ``async with`` starts it, waits until it listens, and ends it by its id."""

    def __init__(
        self, command: list[str], port: int, description: str, folder: Path, environment: dict[str, str]
    ) -> None:
        self.port = port
        self.url = f"mqtt://127.0.0.1:{port}"
        self.description = description
        self._command = command
        self._folder = folder
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process's id."""
        if self._process is None:
            raise UnavailableError("the broker was not started")
        return self._process.pid

    async def __aenter__(self) -> BrokerProcess:
        """Start and wait until it listens.

        Raises:
            ConfigurationError: The port is taken.
            UnavailableError: The broker ended or did not listen; with its last words.
        """
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise ConfigurationError(
                    f"port {self.port} cannot be used for the broker ({error.strerror}); end what uses it or choose another"
                ) from error
        self.start()
        deadline = asyncio.get_running_loop().time() + _START_S
        try:
            while not await self._listens():
                if self._process is not None and self._process.poll() is not None:
                    raise UnavailableError(f"the broker ended at once: {self._last_words()}")
                if asyncio.get_running_loop().time() > deadline:
                    raise UnavailableError(f"the broker did not listen on port {self.port} after {_START_S:.0f} s")
                await asyncio.sleep(0.02)
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it in good order, or else for good."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        for _ in range(250):
            if process.poll() is not None:
                return
            await asyncio.sleep(0.02)
        self.kill()

    def start(self) -> None:
        """Start the process without waiting; also after :meth:`kill`, on the same port and files."""
        with (self._folder / "broker.log").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self._environment},
            )

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    def _last_words(self) -> str:
        words = ""
        for name in ("mosquitto.log", "broker.log"):
            path = self._folder / name
            if path.exists() and (text := path.read_text(errors="replace").strip()):
                words = text.splitlines()[-1]
        return words or "it said nothing"


class _ProvisionedBroker(BrokerProcess):
    """Looks for a program when it is entered, on a thread: fetching one may take a minute and must not hold up the loop."""

    def __init__(self, folder: Path, port: int, kind: str) -> None:
        super().__init__([], port, f"a broker on port {port}", folder, {})
        self._kind = kind

    async def __aenter__(self) -> BrokerProcess:
        self._command, self.description, self._environment = await asyncio.to_thread(
            _prepared, self._folder, self.port, self._kind
        )
        return await super().__aenter__()


def provision_broker(folder: Path, port: int, *, kind: str = "any") -> BrokerProcess:
    """A broker for loopback that keeps its files in ``folder``; found, or fetched, and started by ``async with``.

    Args:
        folder: Its configuration, log and persistent sessions; a fetched mosquitto goes beside it and is found again.
        port: TCP port on 127.0.0.1.
        kind: ``any``, ``mosquitto`` (found or fetched) or ``small`` (ours). Entering raises
            :class:`ConfigurationError` when ``mosquitto`` was asked for and cannot be had.
    """
    return _ProvisionedBroker(folder, port, kind)


def _prepared(folder: Path, port: int, kind: str) -> tuple[list[str], str, dict[str, str]]:
    """Command, description and environment; writes the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind in {"any", "mosquitto"}:
        program, environment = _find_mosquitto(folder.parent / "mosquitto")
        if program is not None:
            text = (importlib.resources.files("firmware_configs") / "broker/mosquitto-loopback.conf").read_text()
            file = folder / "mosquitto.conf"
            values = {"port": str(port), "folder": str(folder.resolve()), "user": getpass.getuser()}
            for name, value in values.items():
                text = text.replace(f"{{{name}}}", value)
            file.write_text(text)
            return [str(program), "-c", str(file)], f"mosquitto on port {port}", environment
    if kind == "mosquitto":
        raise ConfigurationError(
            "mosquitto was not found and could not be fetched; install it: sudo apt install mosquitto"
        )
    command = [sys.executable, "-m", "wattmesh_a2a.small_broker", "--port", str(port)]
    return command, f"our small broker on port {port} (no mosquitto here)", {}


def _find_mosquitto(fetched: Path) -> tuple[Path | None, dict[str, str]]:
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is not None:
        return Path(found), {}
    program = fetched / "usr/sbin/mosquitto"
    if not program.exists():
        _fetch_mosquitto(fetched)
    if not program.exists():
        return None, {}
    libraries = ":".join(str(path) for path in sorted(fetched.glob("usr/lib/*")) if path.is_dir())
    environment = {"LD_LIBRARY_PATH": libraries}
    works = subprocess.run(  # noqa: S603 - a program of Debian's, to see whether its libraries are there
        [str(program), "-h"], env={**os.environ, **environment}, capture_output=True, check=False
    )
    if b"mosquitto version" not in works.stdout:
        log.warning("the fetched mosquitto does not run here; using our small broker")
        return None, {}
    return program, environment


def _fetch_mosquitto(target: Path) -> None:
    """Debian's packages into a folder, without root: ``apt-get download`` and ``dpkg -x``. Failing is no error."""
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if apt is None or dpkg is None:
        return
    packages = target / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for package in _PACKAGES:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(  # noqa: S603 - fixed arguments
                [apt, "download", "-qq", package], cwd=packages, capture_output=True, timeout=_FETCH_S, check=False
            )
    for archive in sorted(packages.glob("*.deb")):
        subprocess.run([dpkg, "-x", str(archive), str(target)], capture_output=True, check=False)  # noqa: S603
