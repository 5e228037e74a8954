"""Double entry in integers (tick · Wh), chained by hashes: every booking takes from one account what it gives another."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

RETAILER = "~retailer"
GRID_OPERATOR = "~grid-operator"


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


class Ledger:
    """Balances and their history's hash."""

    def __init__(self) -> None:
        self.balances: dict[str, int] = defaultdict(int)
        self.paid: dict[tuple[str, str], int] = defaultdict(int)
        """(account, reason) → net received."""
        self.count = 0
        self._hash = hashlib.sha256(b"wattmesh ledger")

    def book(self, booking: Booking) -> None:
        """Book; raises ValueError for a negative amount."""
        if booking.units < 0:
            raise ValueError(f"booking {booking.id} of {booking.units} units: turn debit and credit round")
        self.balances[booking.debit] -= booking.units
        self.balances[booking.credit] += booking.units
        self.paid[booking.debit, booking.reason] -= booking.units
        self.paid[booking.credit, booking.reason] += booking.units
        self.count += 1
        line = f"{booking.id}|{booking.debit}|{booking.credit}|{booking.units}|{booking.reason}\n"
        self._hash.update(line.encode())

    def transfer(self, id_: str, payer: str, payee: str, units: int, reason: str) -> None:
        """Book ``units`` from payer to payee, the other way round when negative; nothing for 0."""
        if units > 0:
            self.book(Booking(id=id_, debit=payer, credit=payee, units=units, reason=reason))
        elif units < 0:
            self.book(Booking(id=id_, debit=payee, credit=payer, units=-units, reason=reason))

    def total(self) -> int:
        """Sum over all accounts: always 0."""
        return sum(self.balances.values())

    @property
    def digest(self) -> str:
        """Hash of all bookings in their order."""
        return self._hash.hexdigest()
