"""Child processes of the demo: started, watched, restarted like a service manager would, and ended by their ids."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil
from wattmesh_a2a.errors import UnavailableError

log = logging.getLogger(__name__)

_SAMPLE_S = 1.0
_RESTART_AFTER_S = 0.5
_RESTARTS_AT_MOST = 5
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process used, over all its starts."""

    cpu_s: float
    resident_max_mb: float
    starts: int


@dataclass(slots=True, kw_only=True)
class Child:
    """One process of the fleet, through all its restarts."""

    name: str
    command: list[str]
    log: Path
    ready: Path
    """Written by the process when it does its work."""
    process: subprocess.Popen[bytes]
    probe: psutil.Process
    starts: int = 1
    cpu_before_s: float = 0.0
    cpu_s: float = 0.0
    resident_max_mb: float = 0.0
    stopping: bool = False
    ended_at: float | None = field(default=None)

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def last_words(self) -> str:
        """The last line it wrote, for an error message."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"no output, exit code {self.process.returncode}"

    def sample(self) -> None:
        """Take the process's CPU time and memory; a process that is gone keeps its last figures."""
        try:
            times = self.probe.cpu_times()
            self.cpu_s = self.cpu_before_s + times.user + times.system
            self.resident_max_mb = max(self.resident_max_mb, self.probe.memory_info().rss / 1e6)
        except psutil.Error:
            return


class Children:
    """All processes of a fleet; leaving the context ends whatever still runs."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: dict[str, Child] = {}

    async def __aenter__(self) -> Children:
        """Nothing runs yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process that is left, politely and then for good."""
        await self.stop(list(self._children), 10.0)

    def start(self, name: str, arguments: list[str]) -> Child:
        """Start ``wattmesh ARGUMENTS``; its output goes to a log file of its name."""
        ready = self._logs / f"{name}.ready"
        command = [str(Path(sys.executable).with_name("wattmesh")), *arguments, "--ready-file", str(ready)]
        log_file = self._logs / f"{name}.log"
        process = _spawn(command, log_file)
        child = Child(
            name=name,
            command=command,
            log=log_file,
            ready=ready,
            process=process,
            probe=psutil.Process(process.pid),
        )
        self._children[name] = child
        return child

    def kill(self, name: str) -> None:
        """``kill -9``: nobody gets to say goodbye."""
        child = self._children.get(name)
        if child is None:
            raise UnavailableError(f"there is no process {name!r}; there are: {', '.join(self._children)}")
        child.sample()
        child.process.kill()

    async def keep_alive(self, say: Callable[[str], None]) -> None:
        """Sample the processes, and restart one that ended unasked, for ever.

        Raises:
            UnavailableError: One process ended again and again.
        """
        while True:
            await asyncio.sleep(_SAMPLE_S)
            for child in self._children.values():
                if child.ended and not child.stopping:
                    self._restart(child, say)
                else:
                    child.sample()

    def _restart(self, child: Child, say: Callable[[str], None]) -> None:
        now = time.monotonic()
        if child.ended_at is None:
            child.ended_at = now
        if now - child.ended_at < _RESTART_AFTER_S:
            return
        if child.starts > _RESTARTS_AT_MOST:
            raise UnavailableError(f"{child.name} ended {child.starts} times; last: {child.last_words()}")
        child.ready.unlink(missing_ok=True)
        child.cpu_before_s = child.cpu_s
        child.process = _spawn(child.command, child.log)
        child.probe = psutil.Process(child.process.pid)
        child.starts += 1
        child.ended_at = None
        say(f"{child.name} had ended (see {child.log.name}) and was started again")

    async def stop(self, names: list[str], patience_s: float) -> bool:
        """Ask processes to end and wait; whoever is not done by then is killed.

        Returns:
            Whether all of them ended by themselves with exit code 0.
        """
        children = [self._children[name] for name in names if name in self._children]
        for child in children:
            child.sample()
            if not child.stopping and not child.ended:
                child.process.send_signal(signal.SIGTERM)
            child.stopping = True
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and not all(child.ended for child in children):
            await asyncio.sleep(0.05)
            for child in children:
                child.sample()
        for child in children:
            if not child.ended:
                log.error("%s did not end within %.0f s and was killed", child.name, patience_s)
                child.process.kill()
            child.process.wait()
        return all(child.process.returncode == 0 for child in children)

    def usage(self) -> Mapping[str, Usage]:
        """What each process used."""
        return {
            name: Usage(cpu_s=child.cpu_s, resident_max_mb=child.resident_max_mb, starts=child.starts)
            for name, child in self._children.items()
        }


def _spawn(command: list[str], log_file: Path) -> subprocess.Popen[bytes]:
    with log_file.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which ends the others in order
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - runs before any thread of the child exists
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


def _end_with_parent() -> None:
    """Linux: a child gets SIGTERM when the demo itself is killed, so that no process is left behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
