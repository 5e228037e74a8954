"""How well each model has forecast each slot, and who is better over the slots that both have forecast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SLOTS = 7 * 96
"""Of a model and quantity that are kept: a week."""
EVIDENCE = 96
"""Slots in common that are needed before a model may take another's place: a day."""
BETTER = 0.98
"""Loss against the model in charge from which on another takes its place."""
DRIFT = 1.5
"""Loss of the last day against the week before it from which on a model is taught anew."""


class Scores:
    """Losses by slot of every model of one site and quantity. Models are only ever compared over slots that they share."""

    def __init__(self) -> None:
        self._losses: dict[str, dict[int, float]] = {}

    def add(self, slot_ns: int, losses: Mapping[str, float]) -> None:
        """Losses of a slot; a reading that comes again takes the place of the first."""
        for name, loss in losses.items():
            known = self._losses.setdefault(name, {})
            known[slot_ns] = loss
            if len(known) > SLOTS:
                del known[min(known)]

    def common(self, names: Iterable[str]) -> dict[str, list[float]]:
        """Losses of each over the slots that all of them have forecast, oldest first."""
        tables = {name: self._losses.get(name, {}) for name in names}
        if not tables:
            return {}
        slots = sorted(set.intersection(*(set(table) for table in tables.values())))
        return {name: [table[slot] for slot in slots] for name, table in tables.items()}

    def beats(self, name: str, champion: str) -> bool:
        """Whether a model has been clearly better than another for at least a day of common slots."""
        both = self.common((name, champion))
        if len(both[name]) < EVIDENCE:
            return False
        return sum(both[name]) < BETTER * sum(both[champion])

    def models(self) -> tuple[str, ...]:
        """Who was scored."""
        return tuple(self._losses)

    def of(self, name: str) -> list[float]:
        """A model's losses, oldest first."""
        known = self._losses.get(name, {})
        return [known[slot] for slot in sorted(known)]

    def drifted(self, name: str) -> bool:
        """Whether a model has been much worse in the last day than in the days before."""
        own = self.of(name)
        before, last = own[:-EVIDENCE], own[-EVIDENCE:]
        if len(before) < 2 * EVIDENCE:
            return False
        return sum(last) / len(last) > DRIFT * sum(before) / len(before)
