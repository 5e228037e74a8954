"""Versions of a site's configuration: a change is checked, tried as a whole, watched for a while, and taken back by itself.

The file that the owner keeps is version 0 and always wins: when it changes, what came from afar is laid aside. A change from
afar is a whole site file with a higher number. While it is on trial its number stands on disk; a gateway that starts and finds a
trial that it has begun before knows that the process died in it, and goes back. So neither a crash nor a power cut nor a hang
that the service manager ends leaves a site with a configuration that nobody has seen work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattmesh_a2a.errors import ConfigurationError, ConflictError

from wattmesh_edge.config import Site, SiteModel, load_site

log = logging.getLogger(__name__)

KEEP = 20
LARGEST_BYTES = 60_000
_OWNERS = ("site", "org", "state", "messaging", "local")
"""Fields that only the owner's file may change: who the site is, whom it trusts, and where it keeps things."""


class Versions:
    """The versions of one site.

    Args:
        file: The owner's site file.
        folder: Where versions are kept.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        self._file = file
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._state = self._read()
        owners = _digest(file.read_bytes())
        if self._state["owners"] != owners:
            if self._state["current"] or self._state["trial"]:
                log.warning("%s has changed: it counts, and not the version %d from afar", file, self._state["current"])
            self._state.update(owners=owners, current=0, trial=0, begun=False)
            self._write()

    @property
    def current(self) -> int:
        """The version that is known to work; 0 is the owner's file."""
        return int(self._state["current"])

    @property
    def trial(self) -> int:
        """The version on trial; 0: none."""
        return int(self._state["trial"])

    @property
    def newest(self) -> int:
        """Highest number that was ever proposed."""
        return int(self._state["newest"])

    def path(self, version: int) -> Path:
        """File of a version."""
        return self._folder / f"{version:09d}.yaml" if version else self._file

    def load(self) -> Site:
        """The site to run now; a trial that was begun before and not ended is taken back first.

        Raises:
            ConfigurationError: The owner's file itself is wrong.
        """
        if self.trial and self._state["begun"]:
            self.roll_back("the gateway ended while it was on trial")
        for version in (self.trial, self.current):
            if version:
                try:
                    site = self._load(version)
                except ConfigurationError as error:  # a file it names is gone, or this software is older
                    log.error("version %d cannot be used any more: %s", version, error)
                    self._state.update(trial=0, begun=False) if version == self.trial else self._state.update(current=0)
                    self._write()
                    continue
                if version == self.trial:
                    self._state["begun"] = True
                    self._write()
                return site
        return load_site(self._file)

    def propose(self, version: int, text: str) -> None:
        """Take a change on trial; the gateway has to be started anew with :meth:`load`.

        Raises:
            ConflictError: It is not newer than what is known, or another one is on trial.
            ConfigurationError: It is no site file, or changes what only the owner may change.
        """
        if version == self.newest == self.trial and self.path(version).read_bytes() == text.encode():
            return  # told again after a crash between taking it and saying so
        if version <= self.newest:
            raise ConflictError(f"version {version} is not newer than {self.newest}")
        if self.trial:
            raise ConflictError(f"version {self.trial} is on trial; propose again when that is over")
        content = text.encode()
        if len(content) > LARGEST_BYTES:
            raise ConfigurationError(f"{len(content)} bytes are more than {LARGEST_BYTES}")
        path = self.path(version)
        write_whole(path, content)
        try:
            check_change(load_site(self._file).model, self._load(version).model)
        except ConfigurationError as error:
            path.unlink()
            raise ConfigurationError(str(error).replace(str(path), f"version {version}")) from error
        self._state.update(trial=version, begun=False, newest=version)
        self._note(version, "on trial")

    def accept(self) -> None:
        """The trial went well: this version is the current one from now on."""
        version = self.trial
        self._state.update(current=version, trial=0, begun=False)
        self._note(version, "good")
        for old in sorted(self._folder.glob("*.yaml"))[:-KEEP]:
            if old != self.path(self.current):
                old.unlink()

    def roll_back(self, reason: str) -> None:
        """The trial did not go well: the version before it counts again."""
        version = self.trial
        log.warning("version %d of the configuration is taken back: %s", version, reason)
        self._state.update(trial=0, begun=False)
        self._note(version, f"taken back: {reason}")

    def pause(self) -> None:
        """The gateway is ended in order while a trial goes on: the next start tries from the beginning."""
        if self.trial:
            self._state["begun"] = False
            self._write()

    def history(self) -> list[tuple[int, str]]:
        """What became of each version, oldest first."""
        return [(int(version), str(text)) for version, text in self._state["history"]]

    def _load(self, version: int) -> Site:
        return load_site(self.path(version), base=self._file.parent)

    def _note(self, version: int, text: str) -> None:
        self._state["history"] = [*self._state["history"], [version, text]][-5 * KEEP :]
        self._write()

    def _read(self) -> dict[str, Any]:
        state: dict[str, Any] = {"owners": "", "current": 0, "trial": 0, "begun": False, "newest": 0, "history": []}
        try:
            found = json.loads((self._folder / "versions.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return state
        except (OSError, ValueError) as error:
            log.error("versions of the configuration cannot be read (%s): the owner's file counts", error)
            return state
        return {**state, **found} if isinstance(found, dict) else state

    def _write(self) -> None:
        write_whole(self._folder / "versions.json", json.dumps(self._state).encode())


def check_change(owners: SiteModel, changed: SiteModel) -> None:
    """Refuse what only the owner may change, and wider limits than the owner's.

    Raises:
        ConfigurationError: With every reason.
    """
    reasons = [
        f"{name}: only the owner's file may change it"
        for name in _OWNERS
        if getattr(owners, name) != getattr(changed, name)
    ]
    mine, theirs = owners.connection, changed.connection
    if theirs.import_limit_w > mine.import_limit_w:
        reasons.append(
            f"connection.import_limit_w: {theirs.import_limit_w:g} is above the owner's {mine.import_limit_w:g}"
        )
    if theirs.export_limit_w > mine.export_limit_w:
        reasons.append(
            f"connection.export_limit_w: {theirs.export_limit_w:g} is above the owner's {mine.export_limit_w:g}"
        )
    if mine.phase_limit_w is not None and (theirs.phase_limit_w is None or theirs.phase_limit_w > mine.phase_limit_w):
        reasons.append(f"connection.phase_limit_w: at most the owner's {mine.phase_limit_w:g}")
    rated = {device.id: device for device in owners.devices}
    for device in changed.devices:
        before = rated.get(device.id)
        if before is None or before.connection != device.connection or before.template != device.template:
            reasons.append(f"devices: {device.id}: only the owner's file may add a device or say where and what it is")
        elif (device.rated_power_w or 0) > (before.rated_power_w or 0):
            reasons.append(f"devices: {device.id}.rated_power_w: at most the owner's {before.rated_power_w or 0:g}")
    if not {device.id for device in owners.devices if device.role == "grid"} <= {
        device.id for device in changed.devices
    }:
        reasons.append("devices: the grid meter stays")
    if reasons:
        raise ConfigurationError("; ".join(reasons))


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a site does: what a trial is compared by."""

    answering: frozenset[str]
    """Devices that answer."""
    healthy: bool
    """Whether complete cycles come and every setpoint arrives."""
    agent_failures: int
    """Since the start."""


class Trial:
    """Watches a site that runs a version on trial.

    Args:
        before: How the site did with the version before; none after a start from nothing.
        cycles: For how many cycles it is watched.
        bad_cycles: As many cycles of trouble end it.
    """

    def __init__(self, before: Health | None, *, cycles: int = 120, bad_cycles: int = 15) -> None:
        self._before = before
        self._left = cycles
        self._bad_left = bad_cycles

    def judge(self, now: Health) -> str | None:
        """After each cycle: ``good``, why it is worse, or none while it is not certain."""
        before = self._before
        missing = before.answering - now.answering if before is not None else frozenset()
        trouble = (
            f"{', '.join(sorted(missing))} answered before"
            if missing
            else "setpoints do not arrive"
            if not now.healthy and (before is None or before.healthy)
            else "an agent fails"
            if now.agent_failures and (before is None or not before.agent_failures)
            else None
        )
        if trouble is not None:
            self._bad_left -= 1
            return trouble if self._bad_left <= 0 else None
        self._left -= 1
        return "good" if self._left <= 0 else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """The whole file or the old one, also after a power cut; raises OSError."""
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
