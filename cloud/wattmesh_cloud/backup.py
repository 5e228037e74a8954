"""Everything that a cloud process keeps, into a folder and back: consistent while it runs, checked by sums, whole or not at all.

Databases are copied by SQLite's own backup while others write; the store goes first and the market's journal after it, as
after a crash: a journal may be ahead of the store, never behind. The lake is copied by its manifest. Keys and certificates are
not in a backup: they are secrets, and belong where secrets are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_cloud.lake import FolderStorage, Lake

VERSION = 1
_INDEX = "backup.json"
_LAKE = "lake"
_FIRST = "store.sqlite"
_LEFT_OUT = ("-wal", "-shm", ".draft", "report.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was copied."""

    files: int
    bytes: int


def backup(state: Path, target: Path, *, configuration: Path | None = None, now_ns: int = 0) -> Summary:
    """Copy a cloud's state folder, also while it runs.

    Args:
        state: The folder (``state`` of the cloud's file).
        target: A folder that is not there yet; it appears when the backup is whole.
        configuration: The cloud's file, to go with it.
        now_ns: When, for the index.

    Raises:
        ConfigurationError: The target is there, or there is nothing to copy.
        UnavailableError: A disk did not take or give something.
    """
    if target.exists():
        raise ConfigurationError(f"{target} is there already; name a new folder")
    if not (state / _FIRST).is_file():
        raise ConfigurationError(f"{state} holds no {_FIRST}: that is no state of a cloud")
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        for source in _files(state):
            _copy(source, draft / "state" / source.relative_to(state))
        _copy_lake(state / _LAKE, draft / "state" / _LAKE)
        if configuration is not None:
            _copy(configuration, draft / "configuration.yaml")
        entries: dict[str, dict[str, int | str]] = {
            path.relative_to(draft).as_posix(): {"bytes": path.stat().st_size, "sha256": _sum(path)}
            for path in sorted(draft.rglob("*"))
            if path.is_file()
        }
        index = {"version": VERSION, "time_ns": now_ns, "files": entries}
        (draft / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        for path in (*sorted(draft.rglob("*")), draft):
            _sync(path)
        draft.replace(target)
        _sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UnavailableError(f"no backup was made: {error}") from error
    return Summary(files=len(entries), bytes=sum(int(entry["bytes"]) for entry in entries.values()))


def verify(source: Path) -> Summary:
    """Check a backup's sums; raises :class:`ConfigurationError` that names what is missing, changed or not of it."""
    try:
        index = json.loads((source / _INDEX).read_text(encoding="utf-8"))
        if index["version"] != VERSION:
            raise ConfigurationError(
                f"{source} is a backup of version {index['version']}; this program reads {VERSION}"
            )
        entries = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in index["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{source} is no backup, or not a whole one: {error}") from error
    present = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()} - {_INDEX}
    if strange := sorted(present ^ set(entries)):
        raise ConfigurationError(f"{source}: missing or not of the backup: {', '.join(strange[:5])}")
    for name, (size, digest) in entries.items():
        path = source / name
        if path.is_symlink() or path.stat().st_size != size or _sum(path) != digest:
            raise ConfigurationError(f"{source}: {name} is not what was backed up")
    return Summary(files=len(entries), bytes=sum(size for size, _ in entries.values()))


def restore(source: Path, state: Path) -> Summary:
    """Bring a checked backup back into an empty place; nothing of it is there until all of it is.

    Raises:
        ConfigurationError: The backup is not whole, or the state folder holds something.
        UnavailableError: A disk did not take or give something.
    """
    summary = verify(source)
    if state.exists() and any(state.iterdir()):
        raise ConfigurationError(f"{state} is not empty; move it away first, nothing is ever overwritten")
    draft = state.with_name(f".{state.name}.restore")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(source / "state", draft)
        for path in (*sorted(draft.rglob("*")), draft):
            _sync(path)
        if state.exists():
            state.rmdir()
        draft.replace(state)
        _sync(state.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UnavailableError(f"nothing was restored: {error}") from error
    return summary


def _files(state: Path) -> Iterator[Path]:
    """The state's own files, the store first and the lake left out."""
    yield state / _FIRST
    for path in sorted(state.rglob("*")):
        name = path.relative_to(state).as_posix()
        if path.is_file() and name != _FIRST and not name.startswith(f"{_LAKE}/") and not name.endswith(_LEFT_OUT):
            yield path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix != ".sqlite":
        shutil.copyfile(source, target)
        return
    with (
        contextlib.closing(sqlite3.connect(source, timeout=30)) as db,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        db.backup(copy)


def _copy_lake(source: Path, target: Path) -> None:
    """What the manifest names; a file that was written anew meanwhile is copied again."""
    if not source.exists():
        return
    for _ in range(5):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in ("manifest.json", *Lake(source).files()):
            path = FolderStorage(source).path(name)
            if path.exists():
                _copy(path, FolderStorage(target).path(name))
        if not Lake(target).verify():
            return
    raise OSError("the lake changed all the while")


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1_000_000):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
