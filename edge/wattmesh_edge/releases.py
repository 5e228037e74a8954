"""Software of a gateway that came by a job: unpacked beside the installed one, tried, watched, and taken back by itself.

The software that the owner installed always stays, and counts again when the owner installs another. A release is one wheel of
WattMesh, unpacked into a folder that is put in front of the installed packages; its libraries are the installed ones. It is
started only after a process of its own has imported it and has checked this very site file with it. The gateway then replaces
itself (the same process, so the service manager sees no end), and as with a configuration: a trial that was begun and not ended
is taken back at the next start.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NoReturn

from wattmesh_a2a import __version__
from wattmesh_a2a.errors import ConfigurationError, ConflictError

from wattmesh_edge.versions import write_whole

log = logging.getLogger(__name__)

VARIABLE = "WATTMESH_RELEASE"
"""Tells a process which release it is; empty for the installed software."""
_BYTES_AT_MOST, _FILES_AT_MOST = 200_000_000, 5000
_CHECK_S = 120.0
_NUMBER = re.compile(r"^\d+(\.\d+){1,3}$")
_RUN = "import sys; from wattmesh_a2a.cli import main; sys.exit(main())"
_TRY = (
    "import sys, wattmesh_a2a, wattmesh_edge.gateway, wattmesh_edge.reflex.kernel; from wattmesh_edge.cli import gateway; "
    "print('version', wattmesh_a2a.__version__, wattmesh_a2a.__file__); sys.exit(gateway(['check', sys.argv[1]]))"
)


class Releases:
    """The releases of one gateway.

    Args:
        folder: Where they are kept.
        site_file: That a release has to be able to check.
        installed: Version of the installed software.
        running: Version that this process is; none: the installed one.
    """

    def __init__(
        self, folder: Path, site_file: Path, *, installed: str = __version__, running: str | None = None
    ) -> None:
        self._folder = folder
        self._site_file = site_file
        folder.mkdir(parents=True, exist_ok=True)
        self._state: dict[str, Any] = {"installed": "", "current": "", "trial": "", "begun": False, "history": []}
        self.running = os.environ.get(VARIABLE, "") if running is None else running
        try:
            found = json.loads((folder / "releases.json").read_text(encoding="utf-8"))
            self._state |= found if isinstance(found, dict) else {}
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.error("releases cannot be read (%s): the installed software counts", error)
        if not self.running and self._state["installed"] != installed:
            if self._state["current"] or self._state["trial"]:
                log.warning("the installed software is %s now: it counts, and no release", installed)
            self._state.update(installed=installed, current="", trial="", begun=False)
            self._write()

    @property
    def trial(self) -> str:
        """The version on trial; empty: none."""
        return str(self._state["trial"])

    @property
    def version(self) -> str:
        """What this process is."""
        return self.running or str(self._state["installed"])

    def history(self) -> list[tuple[str, str]]:
        """What became of each release, oldest first."""
        return [(str(version), str(text)) for version, text in self._state["history"]]

    def wanted(self) -> str:
        """The release to be run from now on; empty: the installed software. A trial that had begun before is taken back."""
        if self.trial and self._state["begun"] and self.running != self.trial:
            self.roll_back("the gateway ended while it was on trial")
        found = self.trial or str(self._state["current"])
        if found and not (self._folder / found).is_dir():
            log.error("release %s is gone: the installed software counts", found)
            self._state.update(current="", trial="", begun=False)
            self._write()
            return ""
        return found

    def stage(self, version: str, artifact: Path) -> None:
        """Unpack a release and try it in a process of its own; it runs after :meth:`enter`. Takes seconds: call it on a thread.

        Raises:
            ConflictError: It is not newer, or another is on trial.
            ConfigurationError: It is no release of that version, or it cannot work here; nothing of it is left.
        """
        if not _NUMBER.fullmatch(version):
            raise ConfigurationError(f"{version!r} is no version; numbers with dots are")
        if self.trial:
            raise ConflictError(f"release {self.trial} is on trial")
        known = [self.version, *(one for one, _ in self.history())]
        newest = max((one for one in known if _NUMBER.fullmatch(one)), key=_order, default="0")
        if _order(version) <= _order(newest):
            raise ConflictError(f"release {version} is not newer than {newest}")
        target = self._folder / version
        shutil.rmtree(target, ignore_errors=True)
        try:
            _unpack(artifact, target)
            self._try(version, target)
        except (ConfigurationError, OSError, zipfile.BadZipFile) as error:
            shutil.rmtree(target, ignore_errors=True)
            raise ConfigurationError(f"release {version}: {error}") from error
        self._state.update(trial=version, begun=False)
        self._note(version, "on trial")

    def _try(self, version: str, target: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": _path_with(target), VARIABLE: version}
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter, with a signed release
                [sys.executable, "-c", _TRY, str(self._site_file)],
                env=environment, capture_output=True, text=True, timeout=_CHECK_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(f"it did not check the site file within {_CHECK_S:g} s") from error
        told = (done.stdout + done.stderr).strip().splitlines()
        if done.returncode != 0:
            raise ConfigurationError(f"it cannot run this site: {told[-1] if told else 'no reason told'}")
        if not told[0].startswith(f"version {version} {target}"):
            raise ConfigurationError(f"it is another software: {told[0]}")

    def enter(self, arguments: list[str]) -> None:
        """Become the wanted release, if this process is not it; on return it is.

        Args:
            arguments: Of ``wattmesh``, for the process that follows.
        """
        wanted = self.wanted()
        if wanted and wanted == self.trial:
            self._state["begun"] = True
            self._write()
        if wanted != self.running:
            self._replace(wanted, arguments)

    def _replace(self, wanted: str, arguments: list[str]) -> NoReturn:
        log.warning("going on as %s", f"release {wanted}" if wanted else "the installed software")
        environment = {**os.environ, VARIABLE: wanted}
        environment["PYTHONPATH"] = _path_with(self._folder / wanted) if wanted else _own_path(self._folder)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, "-c", _RUN, *arguments], environment)  # noqa: S606 - ourselves

    def accept(self) -> None:
        """The trial went well; releases before it are forgotten."""
        version = self.trial
        self._state.update(current=version, trial="", begun=False)
        self._note(version, "good")
        for old in self._folder.iterdir():
            if old.is_dir() and old.name != version:
                shutil.rmtree(old, ignore_errors=True)

    def roll_back(self, reason: str) -> None:
        """The trial did not go well: what ran before counts again."""
        version = self.trial
        log.warning("release %s is taken back: %s", version, reason)
        self._state.update(trial="", begun=False)
        self._note(version, f"taken back: {reason}")

    def pause(self) -> None:
        """The gateway is ended in order while a trial goes on: the next start tries from the beginning."""
        if self.trial:
            self._state["begun"] = False
            self._write()

    def _note(self, version: str, text: str) -> None:
        self._state["history"] = [*self._state["history"], [version, text]][-100:]
        self._write()

    def _write(self) -> None:
        write_whole(self._folder / "releases.json", json.dumps(self._state).encode())


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _path_with(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [_own_path(folder.parent)])])


def _own_path(folder: Path) -> str:
    """PYTHONPATH as it was before any release of this folder."""
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(part for part in parts if part and not Path(part).is_relative_to(folder))


def _unpack(artifact: Path, target: Path) -> None:
    """A wheel's files; refuses what leads outside, and what is too much."""
    with zipfile.ZipFile(artifact) as archive:
        members = archive.infolist()
        if len(members) > _FILES_AT_MOST or sum(one.file_size for one in members) > _BYTES_AT_MOST:
            raise ConfigurationError(f"it has more than {_FILES_AT_MOST} files or {_BYTES_AT_MOST} bytes")
        for one in members:
            path = Path(one.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in one.filename:
                raise ConfigurationError(f"{one.filename!r} leads outside")
        archive.extractall(target)
