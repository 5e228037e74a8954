"""A market's rows in the store, which follow from the journal and may be written again. All of it blocks: for a thread."""

from __future__ import annotations

from wattmesh_a2a.messages import MarketData, ProductData

from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.rows import clearing_rows, live_rows, settlement_rows
from wattmesh_cloud.store.base import Item, Store, Table


class Shelf:
    """Writes one area's rows.

    Args:
        area: Its name.
        engine: Where the rows come from; looked at only.
        store: Where they go.
    """

    def __init__(self, area: str, engine: MarketEngine, store: Store) -> None:
        self._area, self._engine, self._store = area, engine, store
        self._shown: dict[int, ProductData] = {}

    def again(self, since_ns: int) -> None:
        """After a start: what the journal has and the store may not have got before the last stop."""
        for slot_ns in sorted(slot for slot in self._engine.slots if slot >= since_ns):
            if self._engine.slots[slot_ns].clearing is not None:
                self.clearing(slot_ns)
            self.settlements(slot_ns)

    def live(self, seen: MarketData) -> dict[Table, list[Item]]:
        """Rows of the products that have changed since the last time, for :meth:`put`; does not block."""
        rows: dict[Table, list[Item]] = {}
        for product in seen.products:
            before = self._shown.get(product.slot_start_ns)
            if product != before:
                slot = self._engine.slots[product.slot_start_ns]
                for table, items in live_rows(
                    self._area, slot, product, 0 if before is None else before.trades
                ).items():
                    rows.setdefault(table, []).extend(items)
        self._shown = {product.slot_start_ns: product for product in seen.products}
        return rows

    def put(self, rows: dict[Table, list[Item]]) -> None:
        """Write rows."""
        for table, items in rows.items():
            self._store.put(table, items)

    def clearing(self, slot_ns: int) -> None:
        """A closed product with its trades and candles."""
        self.put(clearing_rows(self._area, self._engine.slots[slot_ns]))

    def settlements(self, slot_ns: int) -> None:
        """What was settled of a slot that is not archived."""
        slot = self._engine.slots.get(slot_ns)
        items = settlement_rows(slot) if slot is not None else []
        if items:
            self._store.put(Table.TRADE_DATA, items)
