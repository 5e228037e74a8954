"""What all routes share: who asks, which sites are theirs, pages of rows, and answers in other formats."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel
from wattmesh_a2a.errors import (
    ConfigurationError,
    ConflictError,
    ExpiredError,
    InvalidMessageError,
    UnauthorisedError,
    UnavailableError,
    WattmeshError,
)

from wattmesh_cloud.access.model import Permission, Principal
from wattmesh_cloud.api.models import Problem
from wattmesh_cloud.store.base import Item, Table
from wattmesh_cloud.view import CloudView

MOST_ROWS = 1000
MOST_SAMPLES = 20_000
NS = 1_000_000_000
SPAN_NS = 400 * 86_400 * NS

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request cannot be read"},
    401: {"model": Problem, "description": "Nobody is logged in"},
    403: {"model": Problem, "description": "Not for this role or tenant, or the page's token is missing"},
    404: {"model": Problem, "description": "There is no such thing, or it is not yours"},
    409: {"model": Problem, "description": "It contradicts what is there"},
    413: {"model": Problem, "description": "The request is too large"},
    421: {"model": Problem, "description": "This server has another name"},
    422: {"model": Problem, "description": "A field is wrong; the text names it"},
    429: {"model": Problem, "description": "Too many requests"},
    503: {"model": Problem, "description": "Not now; try again"},
}


def needs(permission: Permission, *, host: bool = False) -> Callable[[Request], Principal]:
    """A dependency: somebody whose role allows this and, with ``host``, who belongs to the operator of the fleet."""

    def check(request: Request) -> Principal:
        principal = getattr(request.state, "principal", None)
        if not isinstance(principal, Principal):
            raise HTTPException(401, "log in first", {"WWW-Authenticate": "Bearer"})
        if not principal.may(permission):
            raise HTTPException(403, f"this needs the right to {permission}; you are {principal.role}")
        if host and not principal.host:
            raise HTTPException(403, "this belongs to the operator of the fleet")
        return principal

    check.permission, check.host = permission, host  # type: ignore[attr-defined]  # the authorisation matrix reads them
    return check


Reader = Annotated[Principal, Depends(needs(Permission.READ))]
HostReader = Annotated[Principal, Depends(needs(Permission.READ, host=True))]
Operator = Annotated[Principal, Depends(needs(Permission.OPERATE))]
HostOperator = Annotated[Principal, Depends(needs(Permission.OPERATE, host=True))]
Trader = Annotated[Principal, Depends(needs(Permission.TRADE))]
Engineer = Annotated[Principal, Depends(needs(Permission.ENGINEER))]
HostEngineer = Annotated[Principal, Depends(needs(Permission.ENGINEER, host=True))]
Admin = Annotated[Principal, Depends(needs(Permission.ADMINISTER, host=True))]

Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Most rows")]
After = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,19}\.[0-9]{1,6}$", description="`next` of the page before", max_length=30)
]
Start = Annotated[int, Query(ge=0, le=2**62, description="UTC nanoseconds, the first")]
End = Annotated[int, Query(ge=0, le=2**62, description="UTC nanoseconds, before this")]


class Format(StrEnum):
    """Formats of rows."""

    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


AsFormat = Annotated[Format, Query(alias="format", description="json, csv or parquet")]
EXPORTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The rows, in the format asked for",
        "content": {
            "text/csv": {"schema": {"type": "string"}},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def known_site(view: CloudView, who: Principal, site_id: str) -> str:
    """The site, where it is theirs; 404 else, and the same whether it is another tenant's or nobody's."""
    sites = who.visible(view.site_ids())
    if site_id not in sites:
        listed = ", ".join(sites[:20]) + (", …" if len(sites) > 20 else "")
        raise HTTPException(404, f"there is no site {site_id[:64]!r}; there are: {listed or 'none'}")
    return site_id


def window(start_ns: int, end_ns: int) -> tuple[int, int]:
    """A bounded span; 422 else."""
    if not start_ns < end_ns or end_ns - start_ns > SPAN_NS:
        raise HTTPException(422, "end_ns has to be after start_ns, by at most 400 days")
    return start_ns, end_ns


async def page(
    view: CloudView,
    table: Table,
    partition: str,
    limit: int,
    after: str | None,
    *,
    start_ns: int = 0,
    end_ns: int = 2**62,
) -> tuple[list[Item], str | None]:
    """A page of a partition, newest first, and where the next one begins.

    A cursor is a time and how many rows of that time were given: rows of one time may be more than a page.
    """
    skip = 0
    if after is not None:
        moment, _, count = after.partition(".")
        end_ns, skip = min(end_ns, int(moment) + 1), int(count)
    if skip + limit > 10 * MOST_ROWS or end_ns > 2**62:
        raise HTTPException(422, "after: this is no cursor of ours")
    found = await asyncio.to_thread(
        view.store.query, table, partition, start_ns, end_ns, limit=skip + limit + 1, newest_first=True
    )
    rows = found[skip : skip + limit]
    if len(found) <= skip + limit or not rows:
        return rows, None
    last = rows[-1].time_ns
    same = sum(row.time_ns == last for row in rows)
    if after is not None and int(after.partition(".")[0]) == last:
        same = skip + sum(row.time_ns == last for row in rows)
    return rows, f"{last}.{same}"


async def in_format(rows: Sequence[BaseModel], how: Format, name: str) -> Response | None:
    """Rows as a file; none for JSON, which the route answers itself."""
    if how is Format.JSON:
        return None
    plain = [row.model_dump(mode="json") for row in rows]
    return await table_response(plain, list(type(rows[0]).model_fields) if rows else [], how, name)


async def table_response(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], how: Format, name: str) -> Response:
    """Rows as a CSV or Parquet file of a name."""
    if how is Format.CSV:
        body, media = as_csv(rows, columns).encode(), "text/csv"
    else:
        body, media = await asyncio.to_thread(as_parquet, rows), "application/vnd.apache.parquet"
    return Response(body, media_type=media, headers={"Content-Disposition": f'attachment; filename="{name}.{how}"'})


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as text. A cell that a spreadsheet would take for a formula gets an apostrophe before it (OWASP)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, list | tuple):
        value = "; ".join(map(str, value))
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        return f"'{value}"
    return "" if value is None else value


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as a Parquet file; times are whole numbers of nanoseconds (UTC)."""
    import pyarrow as pa
    import pyarrow.parquet

    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), sink, compression="zstd")
    return sink.getvalue()


def status_of(error: WattmeshError) -> int:
    """The HTTP status of one of our errors."""
    match error:
        case InvalidMessageError() | ConfigurationError():
            return 422
        case UnauthorisedError():
            return 403
        case ConflictError() | ExpiredError():
            return 409
        case UnavailableError():
            return 503
        case _:
            return 503
