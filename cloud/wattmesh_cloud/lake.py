"""The data lake: stored samples as Parquet, partitioned by site and day; a folder here, S3 later. Queried with DuckDB."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wattmesh_cloud.store.base import Store

_NS = 1_000_000_000
_DAY_NS = 86_400 * _NS


class Lake:
    """A folder of Parquet files with a manifest.

    Args:
        folder: ``site=…/day=….parquet`` go below it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = folder / "manifest.json"

    def files(self) -> dict[str, int]:
        """Name → rows of every file that is whole."""
        if not self._manifest.exists():
            return {}
        names: dict[str, int] = json.loads(self._manifest.read_text(encoding="utf-8"))
        return names

    def compact(self, store: Store, site_id: str, columns: list[str], day_ns: int) -> int:
        """Write one site's day (UTC) from the store; returns the rows. Done again, it replaces the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        start = day_ns - day_ns % _DAY_NS
        series = store.samples(site_id, columns, start, start + _DAY_NS)
        table = pa.table(
            {
                "time_ns": pa.array([time for one in series for time in one.times_ns], pa.int64()),
                "point": pa.array(
                    [one.column for one in series for _ in one.times_ns], pa.string()
                ).dictionary_encode(),
                "value": pa.array([value for one in series for value in one.values], pa.float64()),
                "quality": pa.array([quality for one in series for quality in one.qualities], pa.int8()),
            }
        )
        day = datetime.fromtimestamp(start // _NS, tz=UTC).strftime("%Y-%m-%d")
        name = f"site={site_id}/day={day}.parquet"
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(".draft")
        pq.write_table(table, draft, compression="zstd")
        draft.replace(target)
        manifest = {**self.files(), name: table.num_rows}
        draft = self._manifest.with_suffix(".draft")
        draft.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        draft.replace(self._manifest)
        return int(table.num_rows)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a DuckDB query over the view ``samples`` (site, time_ns, point, value, quality); read-only."""
        import duckdb

        with duckdb.connect(":memory:") as db:
            paths = [str(self._folder / name) for name in self.files()]
            db.execute(
                "CREATE VIEW samples AS SELECT * FROM read_parquet($paths, hive_partitioning = true)".replace(
                    "$paths", repr(paths)
                )
            )
            return list(db.execute(sql).fetchall())
