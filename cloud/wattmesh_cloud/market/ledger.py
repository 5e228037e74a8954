"""Double entry in integers (tick · Wh), chained by hashes: every booking takes from one account what it gives another."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RETAILER = "~retailer"
GRID_OPERATOR = "~grid-operator"
LEVIES = "~levies"
IMBALANCE = "~imbalance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """Money that moves from one account to another."""

    id: str
    debit: str
    """Who pays."""
    credit: str
    """Who gets it."""
    units: int
    """Not negative."""
    reason: str
    """``trade``, ``residual``, ``fee``, ``levy``, ``imbalance`` or ``flexibility``; a correction has its subject's reason."""


class Ledger:
    """Balances and their history's hash.

    Attributes:
        on_booking: Is told of every booking: how statements and audits see the lines, which the ledger itself does not keep.
    """

    def __init__(self) -> None:
        self.balances: dict[str, int] = defaultdict(int)
        self.paid: dict[tuple[str, str], int] = defaultdict(int)
        """(account, reason) → net received."""
        self.count = 0
        self.on_booking: Callable[[Booking], None] | None = None
        self._digest = hashlib.sha256(b"wattmesh ledger").digest()

    def book(self, booking: Booking) -> None:
        """Book; raises ValueError for a negative amount."""
        if booking.units < 0:
            raise ValueError(f"booking {booking.id} of {booking.units} units: turn debit and credit round")
        self._book(booking.id, booking.debit, booking.credit, booking.units, booking.reason)

    def transfer(self, id_: str, payer: str, payee: str, units: int, reason: str) -> None:
        """Book ``units`` from payer to payee, the other way round when negative; nothing for 0."""
        if units > 0:
            self._book(id_, payer, payee, units, reason)
        elif units < 0:
            self._book(id_, payee, payer, -units, reason)

    def _book(self, id_: str, debit: str, credit: str, units: int, reason: str) -> None:
        balances, paid = self.balances, self.paid
        balances[debit] -= units
        balances[credit] += units
        paid[debit, reason] -= units
        paid[credit, reason] += units
        self.count += 1
        line = f"{id_}|{debit}|{credit}|{units}|{reason}\n"
        self._digest = hashlib.sha256(self._digest + line.encode()).digest()
        if self.on_booking is not None:
            self.on_booking(Booking(id=id_, debit=debit, credit=credit, units=units, reason=reason))

    def trades(self, rows: Sequence[tuple[str, str, str, int]]) -> None:
        """Book an auction's trades, (id, buyer, seller, units) each; one step of the chain for all of them."""
        balances = self.balances
        net: dict[str, int] = defaultdict(int)
        lines = []
        for id_, buyer, seller, units in rows:
            if units < 0:
                buyer, seller, units = seller, buyer, -units
            elif units == 0:
                continue
            net[buyer] -= units
            net[seller] += units
            lines.append(f"{id_}|{buyer}|{seller}|{units}|trade\n")
            if self.on_booking is not None:
                self.on_booking(Booking(id=id_, debit=buyer, credit=seller, units=units, reason="trade"))
        for name, units in net.items():
            balances[name] += units
            self.paid[name, "trade"] += units
        self.count += len(lines)
        self._digest = hashlib.sha256(self._digest + "".join(lines).encode()).digest()

    def total(self) -> int:
        """Sum over all accounts: always 0."""
        return sum(self.balances.values())

    @property
    def digest(self) -> str:
        """Hash of all bookings in their order: each line, or an auction's lines together, behind the hash of all before."""
        return self._digest.hex()

    def dump(self) -> dict[str, Any]:
        """Plain values for a snapshot."""
        return {
            "balances": {name: units for name, units in sorted(self.balances.items()) if units},
            "paid": [[name, reason, units] for (name, reason), units in sorted(self.paid.items()) if units],
            "count": self.count,
            "digest": self.digest,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`dump` saw."""
        self.balances = defaultdict(int, state["balances"])
        self.paid = defaultdict(int, {(name, reason): units for name, reason, units in state["paid"]})
        self.count = state["count"]
        self._digest = bytes.fromhex(state["digest"])
