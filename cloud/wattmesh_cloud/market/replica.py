"""A market made of journal entries: what the writer, a standby, an audit and a test of a crash have in common.

An entry is applied in one place, live and in a replay, so that a replay cannot differ from what happened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wattmesh_a2a.codec import message_from_json
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.messages import Commitment, Message, OrderAmend, OrderBatch, OrderCancel, OrderPlace, OrderResult

from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.engine import OPERATOR, MarketEngine
from wattmesh_cloud.market.journal import Follower, Journal, sync_folder
from wattmesh_cloud.market.risk import SiteState

log = logging.getLogger(__name__)

_ORDERS = {
    "orders": "wattmesh.market.orders.v1",
    "place": "wattmesh.market.place.v1",
    "amend": "wattmesh.market.amend.v1",
    "cancel": "wattmesh.market.cancel.v1",
}


class Replica:
    """The state that a journal describes.

    Args:
        config: Rules until the journal names others.

    Attributes:
        count: How many entries have been applied.
        unacknowledged: (participant, slot) of commitments that nobody has confirmed.
        rules: The last rules entry.
    """

    def __init__(self, config: MarketConfig) -> None:
        self.engine = MarketEngine(config)
        self.unacknowledged: set[tuple[str, int]] = set()
        self.rules: dict[str, Any] | None = None
        self.count = 0

    def apply(self, entry: Mapping[str, Any]) -> Any:
        """Let an entry take effect, as it stands in the journal; its output, where it has one."""
        what = entry["what"]
        if what in _ORDERS:
            return self.apply_message(message_from_json(_ORDERS[what], entry["batch"]), entry["now"])
        self.count += 1
        return self._other(what, entry)

    def apply_message(self, message: Message, now: int) -> list[OrderResult]:
        """As :meth:`apply`, of an order's entry whose message the caller has."""
        self.count += 1
        return self._order(message, now)

    def _order(self, message: Message, now: int) -> list[OrderResult]:
        engine = self.engine
        assert isinstance(message, OrderBatch | OrderPlace | OrderAmend | OrderCancel)
        if message.area_id != engine.config.area:
            return engine.elsewhere(named_orders(message))
        match message:
            case OrderBatch():
                return engine.submit(message.participant_id, message.slot_start_ns, message.orders, now)
            case OrderPlace():
                return engine.place(message.participant_id, message.orders, now)
            case OrderAmend():
                return [
                    engine.amend(
                        message.participant_id, message.slot_start_ns, message.client_order_id,
                        message.quantity_wh, message.price_ticks, now,
                    )
                ]  # fmt: skip
            case OrderCancel():
                return engine.cancel(
                    message.participant_id, now,
                    slot_ns=message.slot_start_ns, client_order_ids=message.client_order_ids,
                )  # fmt: skip

    def _other(self, what: str, entry: Mapping[str, Any]) -> Any:
        engine = self.engine
        match what:
            case "rules":
                self.rules = entry["config"]
                engine.configure(MarketConfig.model_validate(entry["config"]))
            case "time":
                engine.advance(entry["now"])
            case "void":
                return self._told(engine.void(entry["slot"]), entry["slot"])
            case "exchange":
                engine.exchange(entry["slot"], entry["link"], entry["wh"])
            case "clear":
                return self._told(engine.clear(entry["slot"]), entry["slot"])
            case "delivered":
                self.unacknowledged.discard((entry["participant"], entry["slot"]))
            case "settle":
                return engine.settle(
                    entry["slot"], entry["participant"], entry["metered"], substituted=entry["substituted"]
                )
            case "flexibility":
                return engine.pay_flexibility(entry["event"], entry["participant"], entry["units"], entry.get("slot"))
            case "halt":
                engine.halt(entry["reason"], entry.get("cause", OPERATOR))
            case "resume":
                engine.resume(entry.get("cause", OPERATOR))
            case "suspend":
                return engine.suspend(entry["participant"], entry["reason"])
            case "reinstate":
                engine.reinstate(entry["participant"])
            case "observe":
                for name, row in entry["sites"].items():
                    engine.observe(
                        name, SiteState(time_ns=row[0], output_w=row[1], generation_w=row[2], stored_wh=row[3])
                    )
            case "refused":
                engine.rejects[entry["reason"]] += entry.get("count", 1)
            case "archive":
                self.unacknowledged = {(name, slot) for name, slot in self.unacknowledged if slot >= entry["before"]}
                return engine.archive(entry["before"])
            case _:
                raise ConfigurationError(f"a journal entry {what!r}, which this version does not know")
        return None

    def _told(self, commitments: list[Commitment], slot: int) -> list[Commitment]:
        self.unacknowledged.update((one.participant_id, slot) for one in commitments)
        return commitments

    # -- snapshots

    def dump(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "count": self.count,
            "rules": self.rules,
            "unacknowledged": sorted(self.unacknowledged),
            "state": self.engine.dump(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`dump` saw."""
        self.count, self.rules = state["count"], state["rules"]
        if self.rules is not None:
            self.engine.configure(MarketConfig.model_validate(self.rules))
        self.unacknowledged = {(name, slot) for name, slot in state["unacknowledged"]}
        self.engine.restore(state["state"])

    def state_hash(self) -> str:
        """Equal markets, equal hashes."""
        return hashlib.sha256(json.dumps(self.dump(), sort_keys=True).encode()).hexdigest()


def named_orders(message: OrderBatch | OrderPlace | OrderAmend | OrderCancel) -> tuple[str, ...]:
    """The client order ids that a message names."""
    match message:
        case OrderBatch() | OrderPlace():
            return tuple(order.client_order_id for order in message.orders)
        case OrderAmend():
            return (message.client_order_id,)
        case OrderCancel():
            return message.client_order_ids


def write_snapshot(path: Path, state: Mapping[str, Any], chain: bytes) -> None:
    """A snapshot on disk, durable and whole or not there at all: its own hash, then the state with its journal's chain."""
    body = json.dumps({**state, "chain": chain.hex()}, separators=(",", ":")).encode()
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def read_snapshot(path: Path) -> dict[str, Any] | None:
    """The snapshot; none, with a warning, when there is none that is whole: the journal then tells it all."""
    if not path.exists():
        return None
    digest, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        log.warning("%s: a damaged snapshot, not used; the whole journal is replayed", path)
        return None
    found: dict[str, Any] = json.loads(body)
    return found


def recovered(config: MarketConfig, journal: Journal, snapshot: Path, warm: Standby | None = None) -> Replica:
    """The market that a journal describes, from its last good snapshot on, from its first entry where there is none.

    Args:
        config: Rules until the journal names others.
        journal: Read and checked in full, whatever the snapshot says.
        snapshot: A file of :func:`write_snapshot`.
        warm: A standby of this journal, whose state is gone on from.
    """
    if warm is not None and journal.chain_at(warm.replica.count) == warm.chain:
        for entry in journal.entries(warm.replica.count):
            warm.replica.apply(entry)
        return warm.replica
    replica = Replica(config)
    saved = read_snapshot(snapshot)
    if saved is not None and (saved["count"] > journal.count or saved["chain"] != journal.chain_at(saved["count"])):
        log.warning("%s does not belong to %s and is not used", snapshot, journal.path)
        saved = None
    if saved is not None:
        try:
            replica.restore(saved)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s: not understood (%r); the whole journal is replayed", snapshot, error)
            replica = Replica(config)
    for entry in journal.entries(replica.count):
        replica.apply(entry)
    return replica


class Standby:
    """A second process that follows a writer's journal and can take its place.

    Args:
        config: As the writer's.
        journal: The writer's file.
    """

    def __init__(self, config: MarketConfig, journal: Path) -> None:
        self.replica = Replica(config)
        self._follower = Follower(journal)

    @property
    def chain(self) -> str:
        """Of the journal, behind the last entry that was applied, in hex."""
        return self._follower.chain.hex()

    def catch_up(self) -> int:
        """Apply what has come since; how many entries.

        To take over, give this to :class:`~wattmesh_cloud.market.service.MarketService`. The journal's lock keeps a living writer
        from being two; one that hangs is fenced before (:func:`~wattmesh_cloud.market.journal.take_over`).
        """
        entries = self._follower.read()
        for entry in entries:
            self.replica.apply(entry)
        return len(entries)
