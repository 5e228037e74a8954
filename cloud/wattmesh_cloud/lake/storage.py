"""Where the lake's objects are: a contract that a folder and a bucket meet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from wattmesh_a2a.errors import UnavailableError


class LakeStorage(Protocol):
    """Objects by name. A name is a relative path with ``/``. Calls block; :class:`UnavailableError` where it may work later."""

    def read(self, name: str) -> bytes | None:
        """An object, none where there is no such."""
        ...

    def get(self, name: str, target: Path) -> bool:
        """Copy an object into a file; whether there is one."""
        ...

    def put(self, name: str, source: Path) -> None:
        """Store a file under a name, whole or not at all, replacing what was there."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Store bytes under a name, whole or not at all, replacing what was there."""
        ...

    def names(self, prefix: str = "") -> Iterator[str]:
        """Names that begin so."""
        ...

    def delete(self, name: str) -> None:
        """Take an object away; none there is fine."""
        ...


class FolderStorage:
    """Files below a folder; see :class:`LakeStorage`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where an object is; raises :class:`ValueError` for a name that leads out of the folder."""
        target = self.folder / name
        if not target.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{name!r} is outside the lake")
        return target

    def read(self, name: str) -> bytes | None:
        """See :class:`LakeStorage`."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnavailableError(f"{name}: {error}") from error

    def get(self, name: str, target: Path) -> bool:
        """See :class:`LakeStorage`."""
        content = self.read(name)
        if content is not None:
            target.write_bytes(content)
        return content is not None

    def put(self, name: str, source: Path) -> None:
        """See :class:`LakeStorage`."""
        self.write(name, source.read_bytes())

    def write(self, name: str, content: bytes) -> None:
        """See :class:`LakeStorage`; synced before it takes the name."""
        target = self.path(name)
        draft = target.with_name(target.name + ".draft")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise UnavailableError(f"{name}: {error}") from error

    def names(self, prefix: str = "") -> Iterator[str]:
        """See :class:`LakeStorage`."""
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name.startswith(prefix) and not name.endswith(".draft"):
                yield name

    def delete(self, name: str) -> None:
        """See :class:`LakeStorage`."""
        self.path(name).unlink(missing_ok=True)
