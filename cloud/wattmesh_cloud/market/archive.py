"""What is kept of slots that are long over: sums, so that a market's memory does not grow with its age.

The journal has everything: statements and audits replay it with the slots kept (:func:`wattmesh_cloud.market.statement.replayed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wattmesh_cloud.market.products import Slot


@dataclass(slots=True)
class Person:
    """One participant's sums; energies in Wh, magnitudes."""

    imported_wh: int = 0
    exported_wh: int = 0
    trades: int = 0
    traded_wh: int = 0
    slots_settled: int = 0
    slots_substituted: int = 0

    def add(self, slot: Slot, name: str) -> None:
        """What somebody traded and was metered in a slot."""
        self.trades += len(slot.trades_of.get(name, ()))
        settlement = slot.settlements.get(name)
        if settlement is not None:
            self.imported_wh += max(0, settlement.metered_wh)
            self.exported_wh += max(0, -settlement.metered_wh)
            self.traded_wh += abs(settlement.committed_wh)
            self.slots_settled += 1
            self.slots_substituted += settlement.substituted


@dataclass(slots=True)
class Sums:
    """Of many slots."""

    trades: int = 0
    volume_wh: int = 0
    slots_cleared: int = 0
    slots_settled: int = 0
    people: dict[str, Person] = field(default_factory=dict)

    def add(self, slot: Slot) -> None:
        """Count a slot."""
        self.trades += len(slot.trades)
        self.volume_wh += slot.volume_wh
        self.slots_cleared += slot.clearing is not None
        self.slots_settled += bool(slot.settlements)
        for name in sorted({*slot.trades_of, *slot.settlements}):
            person = self.people.get(name)
            if person is None:
                person = self.people[name] = Person()
            person.add(slot, name)

    def copy(self) -> Sums:
        """The same, to be added to."""
        return Sums.restored(self.dump())

    def dump(self) -> dict[str, Any]:
        """Plain values for snapshot and state hash."""
        return {
            "sums": [self.trades, self.volume_wh, self.slots_cleared, self.slots_settled],
            "people": {
                name: [getattr(one, name) for name in Person.__slots__] for name, one in sorted(self.people.items())
            },
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Sums:
        """What :meth:`dump` saw."""
        trades, volume_wh, slots_cleared, slots_settled = state["sums"]
        people = {name: Person(*row) for name, row in state["people"].items()}
        return cls(trades, volume_wh, slots_cleared, slots_settled, people)
