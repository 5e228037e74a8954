"""The seven tables in DynamoDB, one each, on-demand.

Keys (``pk``, ``sk``; both text) keep every partition small and none hot:

| what | table | pk | sk |
| --- | --- | --- | --- |
| a row | its own | ``r|PARTITION|MONTH`` | time and id |
| a frame | energy-metrics | ``f|SITE|STREAM|SEQUENCE // 10000`` | sequence |
| the same by time (index ``by_time``) | | ``tpk`` = ``SITE|STREAM|DAY`` | ``tsk`` = last time |
| a stream's counts | energy-metrics | ``s|SHARD`` | site and stream |
| a day for the lake, of samples, of records | energy-metrics | ``d|SITE``, ``e|SITE`` | day |
| which keys there are | each | ``k|SHARD`` | family, name, part |

A frame, its stream's counts, its days and its derived rows are one transaction with the condition that the frame is new, so it
counts once however often it comes. A group is as many transactions: what was stored before an error is known when the group
comes again. Frames go by time to live. Steps are computed from the frames here; there are no rolled-up chunks yet.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch

from wattmesh_cloud.frames import Samples, decode_frame
from wattmesh_cloud.store import columns as col
from wattmesh_cloud.store.base import Derived, FrameRow, Item, Retention, Series, Table, frame_row

_SHARDS = 8
_MONTH_NS = 30 * col.DAY_NS
_RUN = 10_000
_MOST_BYTES = 380_000
"""Of one item; DynamoDB takes 400 KB with names and keys."""
_MOST_ROWS = 10_000
_MOST_TIME = 2**63
_READ_AT_ONCE = 40
"""Frames of one read: at their largest 15 MB, of the 16 that one answer holds."""
_AT_ONCE = 100
"""Items of one transaction."""
_AGAIN = 5
_BUSY = frozenset(
    {"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded", "TransactionInProgressException"}
)


def _shard(name: str) -> int:
    return zlib.crc32(name.encode()) % _SHARDS


def _time_key(time_ns: int, name: str = "") -> str:
    if not 0 <= time_ns < _MOST_TIME:
        raise ValueError(f"cannot be stored: time {time_ns}")
    return f"{time_ns:020d}#{name}" if name else f"{time_ns:020d}"


class DynamoStore:
    """See :class:`wattmesh_cloud.store.base.Store`.

    Args:
        prefix: In front of the tables' names, ``wattmesh-production-``.
        retention: How long frames are kept.
        client: A DynamoDB client; made from the environment where none is given.
        now: Unix time in seconds, for the time to live.
        writers: Transactions under way at once.
    """

    def __init__(
        self,
        prefix: str,
        retention: Retention | None = None,
        *,
        client: Any = None,
        now: Callable[[], float] = time.time,
        writers: int = 8,
    ) -> None:
        self._client = client or boto3.client("dynamodb")
        self._prefix = prefix
        self._retention = retention or Retention()
        self._now = now
        self._noted: set[tuple[Table, str, str]] = set()
        self._pool = ThreadPoolExecutor(writers, thread_name_prefix="dynamodb")

    # -- writing

    def append(self, batches: Sequence[ColumnBatch | RecordBatch], items: Mapping[Table, Sequence[Item]]) -> int:
        """See :class:`wattmesh_cloud.store.base.Store`; the rows are written after the batches."""
        plain = {table: [self._row(table, item) for item in members] for table, members in items.items()}
        new = sum(self.append_frames([(frame_row(batch), []) for batch in batches]))
        for table, rows in plain.items():
            self._note_rows(table, items[table])
            self._put_all(rows)
        return new

    def append_frames(self, frames: Sequence[tuple[FrameRow, Derived]]) -> list[bool]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        made = [self._transaction_of(row, derived) for row, derived in frames]  # checks everything first
        for (site, stream, sequence, *_), derived in frames:
            self._note(Table.ENERGY_METRICS, f"f|{site}|{stream}", f"{sequence // _RUN:015d}")
            for table, item in derived:
                self._note_rows(table, [item])
        seen: dict[tuple[str, str, int], int] = {}
        for index, (row, _) in enumerate(frames):
            seen.setdefault(row[:3], index)
        first = [seen[row[:3]] == index for index, (row, _) in enumerate(frames)]
        done = iter(list(self._pool.map(self._write_frame, [one for one, new in zip(made, first, strict=True) if new])))
        return [next(done) if new else False for new in first]

    def _transaction_of(self, row: FrameRow, derived: Derived) -> list[dict[str, Any]]:
        site, stream, sequence, first_ns, last_ns, records, frame = row
        if len(frame) > _MOST_BYTES or last_ns - first_ns > col.DAY_NS or not 0 <= sequence < 2**62:
            raise ValueError("cannot be stored: a frame over 380 KB, over a day, or with a wrong sequence")
        table = self._prefix + Table.ENERGY_METRICS
        item = {
            **_key(f"f|{site}|{stream}|{sequence // _RUN:015d}", f"{sequence:020d}"),
            "tpk": {"S": f"{site}|{stream}|{last_ns // col.DAY_NS}"},
            "tsk": {"S": _time_key(last_ns)},
            "first_ns": {"N": str(first_ns)},
            "records": {"N": str(records)},
            "frame": {"B": frame},
            "expires": {"N": str(int(max(self._now(), last_ns / col.NS)) + self._retention.frames_s)},
        }
        put = {"TableName": table, "Item": item, "ConditionExpression": "attribute_not_exists(pk)"}
        count = {
            "TableName": table,
            "Key": _key(f"s|{_shard(site)}", f"{site}|{stream}"),
            "UpdateExpression": "ADD batches :one, records :records",
            "ExpressionAttributeValues": {":one": {"N": "1"}, ":records": {"N": str(records)}},
        }
        known = stream in {"points", "records"} and records > 0
        days = range(first_ns // col.DAY_NS, last_ns // col.DAY_NS + 1) if known else ()
        family = "d" if stream == "points" else "e"
        touched = [
            {
                "Update": {
                    "TableName": table,
                    "Key": _key(f"{family}|{site}", f"{day:010d}"),
                    "UpdateExpression": "ADD version :one",
                    "ExpressionAttributeValues": {":one": {"N": "1"}},
                }
            }
            for day in days
        ]
        rows = {json.dumps([one["TableName"], one["Item"]["pk"], one["Item"]["sk"]]): one for one in (
            self._row(name, member) for name, member in derived
        )}  # fmt: skip
        whole = [{"Put": put}, {"Update": count}, *touched, *({"Put": one} for one in rows.values())]
        if len(whole) > _AT_ONCE:
            raise ValueError(f"cannot be stored: {len(rows)} rows of one frame")
        return whole

    def _write_frame(self, transaction: list[dict[str, Any]]) -> bool:
        for _ in range(_AGAIN):
            try:
                self._client.transact_write_items(TransactItems=transaction)
                return True
            except ClientError as error:
                reasons = [one.get("Code") for one in error.response.get("CancellationReasons", ())]
                if reasons and reasons[0] == "ConditionalCheckFailed":
                    return False
                if not _BUSY.intersection(reasons):
                    raise _failure(error) from error
            except BotoCoreError as error:
                raise UnavailableError(f"DynamoDB: {error}") from error
        raise UnavailableError("DynamoDB: too many writers of the same rows")

    def put(self, table: Table, items: Sequence[Item]) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`; all or none of each hundred."""
        rows = [self._row(table, item) for item in items]
        self._note_rows(table, items)
        self._put_all(rows)

    def _put_all(self, rows: Sequence[dict[str, Any]]) -> None:
        distinct = list({(one["Item"]["pk"]["S"], one["Item"]["sk"]["S"]): one for one in rows}.values())
        for at in range(0, len(distinct), _AT_ONCE):
            self._call("transact_write_items", TransactItems=[{"Put": one} for one in distinct[at : at + _AT_ONCE]])

    def _row(self, table: Table, item: Item) -> dict[str, Any]:
        text = json.dumps(item.data, separators=(",", ":"), allow_nan=False)
        if len(text) > _MOST_BYTES:
            raise ValueError(f"cannot be stored: a row of {len(text)} bytes")
        key = _key(_row_pk(item.partition, item.time_ns // _MONTH_NS), _time_key(item.time_ns, item.id))
        return {"TableName": self._prefix + table, "Item": {**key, "data": {"S": text}}}

    # -- which keys there are

    def _note_rows(self, table: Table, items: Sequence[Item]) -> None:
        for partition, month in {(item.partition, item.time_ns // _MONTH_NS) for item in items}:
            self._note(table, f"r|{partition}", f"{month:010d}")

    def _note(self, table: Table, family: str, part: str) -> None:
        """Before the first write of a key; again and again does no harm."""
        if (table, family, part) not in self._noted:
            key = _key(f"k|{_shard(family)}", f"{family}|{part}")
            self._call("put_item", TableName=self._prefix + table, Item=key)
            self._noted.add((table, family, part))

    def _parts(self, table: Table, family: str) -> list[int]:
        found = self._query(table, f"k|{_shard(family)}", begins=f"{family}|")
        return sorted(int(one["sk"]["S"].rsplit("|", 1)[1]) for one in found)

    # -- reading

    def query(
        self,
        table: Table,
        partition: str,
        start_ns: int,
        end_ns: int,
        *,
        limit: int = 1000,
        newest_first: bool = False,
    ) -> list[Item]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        left = max(0, min(limit, _MOST_ROWS))
        months = [one for one in self._parts(table, f"r|{partition}") if start_ns < (one + 1) * _MONTH_NS]
        months = [one for one in months if one * _MONTH_NS < end_ns]
        span = (f"{max(0, start_ns):020d}", f"{max(0, end_ns):020d}")
        found: list[Item] = []
        for month in reversed(months) if newest_first else months:
            if left == len(found):
                break
            rows = self._query(
                table, _row_pk(partition, month), between=span, backwards=newest_first, limit=left - len(found)
            )
            for row in rows:
                moment, _, name = row["sk"]["S"].partition("#")
                data = json.loads(row["data"]["S"])
                found.append(Item(partition=partition, time_ns=int(moment), id=name, data=data))
        return found

    def partitions(self, table: Table) -> list[str]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        found = (one for shard in range(_SHARDS) for one in self._query(table, f"k|{shard}", begins="r|"))
        return sorted({one["sk"]["S"][2:].rsplit("|", 1)[0] for one in found})

    def samples(
        self, site_id: str, columns: Sequence[str], start_ns: int, end_ns: int, *, step_s: int | None = None
    ) -> list[Series]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        found = col.raw_columns(self.raw(site_id, start_ns, end_ns, columns), columns, start_ns, end_ns)
        if step_s is None:
            return [col.series_of(name, part) for name, part in zip(columns, found, strict=True)]
        return [col.mean_series(name, col.sums_of(part, step_s)) for name, part in zip(columns, found, strict=True)]

    def raw(self, site_id: str, start_ns: int, end_ns: int, columns: Sequence[str] | None = None) -> Iterator[Samples]:
        """See :class:`wattmesh_cloud.store.base.Store`; the index by time may lag by a moment."""
        wanted = None if columns is None else frozenset(columns)
        days = [int(one["sk"]["S"]) for one in self._query(Table.ENERGY_METRICS, f"d|{site_id}")]
        for day in sorted(days):
            if (day + 1) * col.DAY_NS <= start_ns or (day - 1) * col.DAY_NS >= end_ns:
                continue
            span = (_time_key(max(0, start_ns)), f"{_MOST_TIME:020d}")
            rows = self._query(Table.ENERGY_METRICS, f"{site_id}|points|{day}", between=span, index=True)
            inside = (row for row in rows if int(row["first_ns"]["N"]) < end_ns)
            for _, frame in self._frames(inside):
                batch = decode_frame(frame, wanted)
                if isinstance(batch, Samples):
                    yield batch

    def sequences(self, site_id: str, stream: str) -> tuple[int, int]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        answer = self._call(
            "get_item",
            TableName=self._prefix + Table.ENERGY_METRICS,
            Key=_key(f"s|{_shard(site_id)}", f"{site_id}|{stream}"),
            ConsistentRead=True,
        )
        found = answer.get("Item")
        return (int(found["batches"]["N"]), int(found["records"]["N"])) if found else (0, 0)

    def streams(self) -> list[tuple[str, str]]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        found = (one for shard in range(_SHARDS) for one in self._query(Table.ENERGY_METRICS, f"s|{shard}"))
        names = (one["sk"]["S"].rpartition("|") for one in found)
        return sorted((site, stream) for site, _, stream in names)

    def gaps(self, site_id: str, stream: str) -> list[tuple[int, int]]:
        """See :class:`wattmesh_cloud.store.base.Store`; only as far back as frames are kept."""
        gaps: list[tuple[int, int]] = []
        before: int | None = None
        family = f"f|{site_id}|{stream}"
        for run in self._parts(Table.ENERGY_METRICS, family):
            for row in self._query(Table.ENERGY_METRICS, f"{family}|{run:015d}", keys_only=True):
                sequence = int(row["sk"]["S"])
                if before is not None and sequence > before + 1:
                    gaps.append((before + 1, sequence - 1))
                before = sequence
        return gaps[:1000]

    def held(self, site_id: str, stream: str, first: int, last: int) -> list[int]:
        """See :class:`wattmesh_cloud.store.base.Store`; only as far back as frames are kept."""
        found: list[int] = []
        for run in range(max(0, first) // _RUN, min(last, first + _RUN) // _RUN + 1):
            rows = self._query(
                Table.ENERGY_METRICS,
                f"f|{site_id}|{stream}|{run:015d}",
                between=(f"{max(0, first):020d}", f"{last:020d}"),
                keys_only=True,
            )
            found += [int(row["sk"]["S"]) for row in rows]
        return found[:1000]

    # -- the lake, and time

    def days_due(self, before_ns: int) -> list[tuple[str, int, int]]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        return self._due(before_ns, "points", "d")

    def record_days_due(self, before_ns: int) -> list[tuple[str, int, int]]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        return self._due(before_ns, "records", "e")

    def _due(self, before_ns: int, kind: str, family: str) -> list[tuple[str, int, int]]:
        due = []
        for site in sorted({site for site, stream in self.streams() if stream == kind}):
            for one in self._query(Table.ENERGY_METRICS, f"{family}|{site}"):
                day, version = int(one["sk"]["S"]) * col.DAY_NS, int(one["version"]["N"])
                if day <= before_ns - col.DAY_NS and version != int(one.get("done", {"N": "0"})["N"]):
                    due.append((site, day, version))
        return sorted(due, key=lambda one: (one[1], one[0]))

    def day_done(self, site_id: str, day_ns: int, version: int) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        self._done("d", site_id, day_ns, version)

    def record_day_done(self, site_id: str, day_ns: int, version: int) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        self._done("e", site_id, day_ns, version)

    def raw_records(self, site_id: str, start_ns: int, end_ns: int) -> Iterator[tuple[int, RecordBatch]]:
        """See :class:`wattmesh_cloud.store.base.Store`; the index by time may lag by a moment."""
        for day in range(start_ns // col.DAY_NS, (end_ns - 1) // col.DAY_NS + 1):
            span = (_time_key(start_ns), _time_key(end_ns))
            rows = self._query(Table.ENERGY_METRICS, f"{site_id}|records|{day}", between=span, index=True)
            inside = (row for row in rows if int(row["tsk"]["S"]) < end_ns)
            for came, frame in self._frames(inside):
                batch = decode_frame(frame)
                if isinstance(batch, RecordBatch):
                    yield came, batch

    def _frames(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, bytes]]:
        """Last time and frame of rows of the index, in their order; the index has no frames, which would be written twice."""
        table, left = self._prefix + Table.ENERGY_METRICS, iter(rows)
        while some := list(islice(left, _READ_AT_ONCE)):
            wanted = [{"pk": row["pk"], "sk": row["sk"]} for row in some]
            found: dict[tuple[str, str], bytes] = {}
            for _ in range(_AGAIN):
                request = {table: {"Keys": wanted, "ConsistentRead": True}}
                answer = self._call("batch_get_item", RequestItems=request)
                for item in answer["Responses"].get(table, ()):
                    found[item["pk"]["S"], item["sk"]["S"]] = bytes(item["frame"]["B"])
                wanted = answer.get("UnprocessedKeys", {}).get(table, {}).get("Keys", [])
                if not wanted:
                    break
            else:
                raise UnavailableError("DynamoDB: too many reads at once")
            for row in some:
                frame = found.get((row["pk"]["S"], row["sk"]["S"]))
                if frame is not None:  # gone by its time to live since the index was read
                    yield int(row["tsk"]["S"]), frame

    def _done(self, family: str, site_id: str, day_ns: int, version: int) -> None:
        self._call(
            "update_item",
            TableName=self._prefix + Table.ENERGY_METRICS,
            Key=_key(f"{family}|{site_id}", f"{day_ns // col.DAY_NS:010d}"),
            UpdateExpression="SET done = :version",
            ExpressionAttributeValues={":version": {"N": str(version)}},
        )

    def maintain(self, now_ns: int) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`: frames go by time to live, and nothing is rolled up here."""

    def close(self) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        self._pool.shutdown()

    # -- the service

    def _query(
        self,
        table: Table,
        pk: str,
        *,
        begins: str | None = None,
        between: tuple[str, str] | None = None,
        index: bool = False,
        backwards: bool = False,
        limit: int | None = None,
        keys_only: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Rows of one partition key, page by page; ``between`` leaves its upper end out."""
        hash_key, range_key = ("tpk", "tsk") if index else ("pk", "sk")
        values: dict[str, Any] = {":pk": {"S": pk}}
        condition = f"{hash_key} = :pk"
        if begins is not None:
            condition += f" AND begins_with({range_key}, :begins)"
            values[":begins"] = {"S": begins}
        elif between is not None:
            condition += f" AND {range_key} BETWEEN :low AND :high"
            values[":low"], values[":high"] = {"S": between[0]}, {"S": between[1]}
        request: dict[str, Any] = {
            "TableName": self._prefix + table,
            "KeyConditionExpression": condition,
            "ExpressionAttributeValues": values,
            "ScanIndexForward": not backwards,
            **({"IndexName": "by_time"} if index else {"ConsistentRead": True}),
            **({"ProjectionExpression": "sk"} if keys_only else {}),
        }
        given = 0
        while limit is None or given < limit:
            if limit is not None:
                request["Limit"] = limit - given
            answer = self._call("query", **request)
            for row in answer["Items"]:
                given += 1
                yield row
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def _call(self, name: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, name)(**arguments)
        except ClientError as error:
            raise _failure(error) from error
        except BotoCoreError as error:
            raise UnavailableError(f"DynamoDB: {error}") from error
        return answer


def _failure(error: ClientError) -> Exception:
    code = error.response["Error"]["Code"]
    if code in {"ValidationException", "ItemCollectionSizeLimitExceededException"}:
        return ValueError(f"cannot be stored: {error}")
    return UnavailableError(f"DynamoDB: {error}")


def _key(pk: str, sk: str) -> dict[str, Any]:
    return {"pk": {"S": pk}, "sk": {"S": sk}}


def _row_pk(partition: str, month: int) -> str:
    return f"r|{partition}|{month:010d}"


def table_definition(prefix: str, table: Table) -> dict[str, Any]:
    """What ``create_table`` takes; the CloudFormation template says the same, and a test compares them."""
    definition: dict[str, Any] = {
        "TableName": prefix + table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
    }
    if table is Table.ENERGY_METRICS:
        definition["AttributeDefinitions"] += [{"AttributeName": name, "AttributeType": "S"} for name in ("tpk", "tsk")]
        definition["GlobalSecondaryIndexes"] = [
            {
                "IndexName": "by_time",
                "KeySchema": [
                    {"AttributeName": "tpk", "KeyType": "HASH"},
                    {"AttributeName": "tsk", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["first_ns"]},
            }
        ]
    return definition
