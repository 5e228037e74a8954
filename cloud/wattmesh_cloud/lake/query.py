"""SQL over the lake's files with DuckDB: one SELECT, no other file, nothing written, bounded in rows, memory and time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattmesh_a2a.errors import WattmeshError


class QueryError(WattmeshError):
    """A query that is not allowed, is wrong, or goes beyond its bounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryLimits:
    """Bounds of one query."""

    rows: int = 10_000
    seconds: float = 10.0
    memory: str = "256MB"


_SETTINGS: dict[str, Any] = {
    "threads": 1,
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
}
_EMPTY = (
    "SELECT NULL::BIGINT AS time_ns, NULL::VARCHAR AS point, NULL::DOUBLE AS value, NULL::TINYINT AS quality,"
    " NULL::VARCHAR AS site, NULL::DATE AS day WHERE false"
)


_NO_RECORDS = (
    "SELECT NULL::BIGINT AS sequence, NULL::INTEGER AS line, NULL::BIGINT AS received_ns, NULL::VARCHAR AS record,"
    " NULL::VARCHAR AS site, NULL::DATE AS day WHERE false"
)


def run_query(sql: str, paths: Sequence[Path], limits: QueryLimits) -> list[tuple[Any, ...]]:
    """Rows of a query over the views ``samples`` and ``records`` of these files; raises :class:`QueryError`."""
    import duckdb

    with duckdb.connect(":memory:", config={**_SETTINGS, "memory_limit": limits.memory}) as db:
        db.execute("SET allowed_paths = " + _literal([str(path) for path in paths]))
        db.execute("SET enable_external_access = false")
        for view, empty in (("samples", _EMPTY), ("records", _NO_RECORDS)):
            texts = [str(path) for path in paths if path.parents[2].name == view]
            source = f"SELECT * FROM read_parquet({_literal(texts)}, hive_partitioning = true)" if texts else empty  # noqa: S608
            db.execute(f"CREATE VIEW {view} AS {source}")
        db.execute("SET lock_configuration = true")
        late = threading.Event()

        def stop() -> None:
            late.set()
            db.interrupt()

        timer = threading.Timer(limits.seconds, stop)
        try:
            statements = db.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise QueryError("a query is one SELECT")
            timer.start()
            rows: list[tuple[Any, ...]] = db.execute(statements[0]).fetchmany(limits.rows + 1)
        except duckdb.Error as error:
            if late.is_set():
                raise QueryError(
                    f"the query took more than {limits.seconds:g} s; ask for fewer sites or days"
                ) from error
            raise QueryError(str(error).splitlines()[0]) from error
        finally:
            timer.cancel()
    if len(rows) > limits.rows:
        raise QueryError(f"the query gives more than {limits.rows} rows; aggregate, or add a LIMIT")
    return rows


def _literal(texts: Sequence[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"
