"""See the package."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from wattmesh_a2a.errors import UnavailableError

from wattmesh_cloud.lake.query import QueryError, QueryLimits, run_query
from wattmesh_cloud.lake.storage import FolderStorage, LakeStorage
from wattmesh_cloud.store import columns as col
from wattmesh_cloud.store.base import Store

_MANIFEST = "manifest.json"
_RECORD_COLUMNS = ("sequence", "line", "received_ns", "record")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """What the manifest says of one file."""

    rows: int
    bytes: int
    sha256: str
    first_ns: int
    last_ns: int


class Lake:
    """Parquet files with a manifest. One writer.

    Args:
        storage: Where they are; a path is a folder.
        limits: Of queries.
    """

    def __init__(self, storage: LakeStorage | Path, limits: QueryLimits | None = None) -> None:
        self._storage = FolderStorage(storage) if isinstance(storage, Path) else storage
        self._limits = limits or QueryLimits()

    def entries(self) -> dict[str, FileEntry]:
        """Every file that is whole; raises :class:`UnavailableError` for a manifest that cannot be read."""
        content = self._storage.read(_MANIFEST)
        if content is None:
            return {}
        try:
            # A manifest of the first version said the rows only; its files are of another layout and come again.
            return {name: FileEntry(**entry) for name, entry in json.loads(content).items() if isinstance(entry, dict)}
        except (ValueError, TypeError, AttributeError) as error:
            raise UnavailableError(f"the lake's manifest is damaged ({error}); Lake.rebuild() makes it anew") from error

    def files(self) -> dict[str, int]:
        """Name → rows."""
        return {name: entry.rows for name, entry in self.entries().items()}

    def catch_up(self, store: Store, now_ns: int) -> int:
        """Take every day that is over and that the store notes as due, also those missed while the cloud was down.

        Returns:
            How many days were written.
        """
        due = store.days_due(now_ns)
        for site, day, version in due:
            self.take_day(store, site, day)
            store.day_done(site, day, version)
        told = store.record_days_due(now_ns)
        for site, day, version in told:
            self.take_records(store, site, day)
            store.record_day_done(site, day, version)
        return len(due) + len(told)

    def take_day(self, store: Store, site_id: str, day_ns: int) -> int:
        """Write one site's day (UTC) from the store and from what the lake has of it; returns the rows."""
        import pyarrow.parquet as pq

        start = day_ns - day_ns % col.DAY_NS
        name = _name(site_id, start)
        entries = self.entries()
        with tempfile.TemporaryDirectory(prefix="wattmesh-lake-") as folder:
            draft, before = Path(folder) / "draft.parquet", Path(folder) / "before.parquet"
            known = name in entries and self._storage.get(name, before)
            rows, first, last = 0, 0, 0
            with pq.ParquetWriter(draft, _schema(), compression="zstd") as writer:
                for hour in range(start, start + col.DAY_NS, col.HOUR_NS):
                    table = _hour(store, site_id, hour, before if known else None)
                    if table.num_rows:
                        writer.write_table(table)
                        times = table.column("time_ns").to_numpy()
                        first, last = first or int(times.min()), int(times.max())
                        rows += table.num_rows
            if not rows:
                return 0
            content = draft.read_bytes()
            self._storage.write(name, content)
            entries[name] = FileEntry(
                rows=rows,
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                first_ns=first,
                last_ns=last,
            )
            self._write(entries)
        return rows

    def take_records(self, store: Store, site_id: str, day_ns: int) -> int:
        """Write the records of one site that came in one day (UTC), with those that the lake has of it; returns the rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        start = day_ns - day_ns % col.DAY_NS
        name = _name(site_id, start, "records")
        entries = self.entries()
        found: dict[tuple[int, int], tuple[int, str]] = {}
        if name in entries and (content := self._storage.read(name)) is not None:
            held = pq.read_table(pa.BufferReader(content)).to_pydict()
            for sequence, line, came, text in zip(*(held[key] for key in _RECORD_COLUMNS), strict=True):
                found[sequence, line] = (came, text)
        for came, batch in store.raw_records(site_id, start, start + col.DAY_NS):
            for line, text in enumerate(batch.lines):
                found.setdefault((batch.sequence, line), (came, text.decode("utf-8", "replace")))
        if not found:
            return 0
        keys = sorted(found)
        table = pa.table(
            {
                "sequence": pa.array([sequence for sequence, _ in keys], pa.int64()),
                "line": pa.array([line for _, line in keys], pa.int32()),
                "received_ns": pa.array([found[key][0] for key in keys], pa.int64()),
                "record": pa.array([found[key][1] for key in keys], pa.string()),
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        self._storage.write(name, content)
        times = [came for came, _ in found.values()]
        entries[name] = FileEntry(
            rows=len(keys),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            first_ns=min(times),
            last_ns=max(times),
        )
        self._write(entries)
        return len(keys)

    def _write(self, entries: dict[str, FileEntry]) -> None:
        text = json.dumps({name: asdict(entries[name]) for name in sorted(entries)}, indent=1)
        self._storage.write(_MANIFEST, text.encode())

    def verify(self) -> list[str]:
        """Names of files that are missing or not what the manifest says."""
        wrong = []
        for name, entry in self.entries().items():
            content = self._storage.read(name)
            if content is None or hashlib.sha256(content).hexdigest() != entry.sha256:
                wrong.append(name)
        return wrong

    def rebuild(self) -> int:
        """Make the manifest anew from the files that are whole Parquet; returns how many."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        entries = {}
        for name in (*self._storage.names("samples/"), *self._storage.names("records/")):
            content = self._storage.read(name) or b""
            column = "time_ns" if name.startswith("samples/") else "received_ns"
            try:
                times = pq.read_table(pa.BufferReader(content), columns=[column]).column(column).to_numpy()
            except (pa.ArrowException, KeyError):
                continue
            if len(times):
                entries[name] = FileEntry(
                    rows=len(times),
                    bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                    first_ns=int(times.min()),
                    last_ns=int(times.max()),
                )
        self._write(entries)
        return len(entries)

    def query(self, sql: str, limits: QueryLimits | None = None) -> list[tuple[Any, ...]]:
        """Rows of one SELECT over the views ``samples`` (time_ns, point, value, quality, site, day) and ``records``.

        ``records`` has sequence, line, received_ns, record (JSON of type and data), site and day.

        Raises:
            QueryError: Anything but a SELECT, another file, a mistake, or more rows or time than the limits allow.
        """
        if not isinstance(self._storage, FolderStorage):
            raise QueryError("a lake in S3 is queried by Athena, see docs/aws.md")
        paths = [self._storage.path(name) for name in self.entries()]
        return run_query(sql, paths, limits or self._limits)


def _name(site_id: str, start_ns: int, kind: str = "samples") -> str:
    day = datetime.fromtimestamp(start_ns // col.NS, tz=UTC).strftime("%Y-%m-%d")
    return f"{kind}/site={quote(site_id, safe='')}/day={day}/part.parquet"


def _schema() -> Any:
    import pyarrow as pa

    point = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([("time_ns", pa.int64()), ("point", point), ("value", pa.float64()), ("quality", pa.int8())])


def _hour(store: Store, site_id: str, hour: int, before: Path | None) -> Any:
    """One row group: the store's samples and the lake's, each distinct one once, by point and time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    end = hour + col.HOUR_NS
    batches = list(store.raw(site_id, hour, end))
    names = sorted({name for batch in batches for name in batch.columns})
    held = dict(zip(names, col.raw_columns(batches, names, hour, end), strict=True))
    if before is not None:
        window = [("time_ns", ">=", hour), ("time_ns", "<", end)]
        old = pq.read_table(before, filters=window, partitioning=None)
        points = old.column("point").combine_chunks().dictionary_encode() if old.num_rows else None
        if points is not None:
            codes = np.asarray(points.indices)
            times, values = old.column("time_ns").to_numpy(), old.column("value").to_numpy()
            qualities = old.column("quality").to_numpy().astype(np.uint8)
            for code, name in enumerate(points.dictionary.to_pylist()):
                here = codes == code
                part = (times[here], values[here], qualities[here])
                parts = [held[name], part] if name in held else [part]
                held[name] = col.distinct(col.concatenated(parts))
    kept = [(name, held[name]) for name in sorted(held) if len(held[name][0])]
    counts = [len(part[0]) for _, part in kept]
    whole = col.concatenated([part for _, part in kept])
    codes = np.repeat(np.arange(len(kept), dtype=np.int32), counts)
    point = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([name for name, _ in kept], pa.string()))
    return pa.table(
        [pa.array(whole[0]), point, pa.array(whole[1]), pa.array(whole[2].astype(np.int8))], schema=_schema()
    )
