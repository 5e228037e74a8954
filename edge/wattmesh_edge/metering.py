"""Energy of each delivery slot, from the meters' counters, or from measured power where a counter is too coarse.

The counters at a slot's start are kept on disk, so that a gateway that was away in the middle still reports the whole slot.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wattmesh_a2a.devices import AssetKind
from wattmesh_a2a.messages import IntervalEnergy
from wattmesh_a2a.tariff import slot_start_ns
from wattmesh_drivers.driver import Driver

from wattmesh_edge.image import ImageMaker, SiteImage

SLOT_S = 900
SLOT_NS = SLOT_S * 1_000_000_000
FINE_WH = 1.0
"""A counter with a coarser step is not used for a quarter of an hour."""
_SPREAD_AT_MOST = 96
_GAP_NS = 120 * 1_000_000_000
"""Integrated power with a larger gap makes a slot incomplete."""

COUNTERS = ("import", "export", "pv", "charge", "discharge")


@dataclass(frozen=True, slots=True)
class _Counter:
    name: str
    device: str
    point: str
    fine: bool


class Metering:
    """Cuts a site's energy into slots.

    Args:
        site_id: The site.
        drivers: By device.
        grid_meter: The device at the grid connection.
        maker: Reads good and fresh values.
        db: The gateway's database.
    """

    def __init__(
        self,
        site_id: str,
        drivers: Mapping[str, Driver],
        grid_meter: str,
        maker: ImageMaker,
        db: sqlite3.Connection,
    ) -> None:
        self._site = site_id
        self._maker = maker
        self._db = db
        self._counters, self._uncounted = _counters(drivers, grid_meter)
        self._integrals: dict[str, float] = dict.fromkeys(COUNTERS, 0.0)
        self._last: SiteImage | None = None
        self._complete = False
        self._by_counters: float | None = None
        self._unsaved = False
        with db:
            db.execute("CREATE TABLE IF NOT EXISTS metering (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID")
        stored = dict(db.execute("SELECT name, value FROM metering").fetchall())
        self._slot_ns = int(stored.pop("slot", 0)) * 1_000_000_000
        self._in_time = bool(stored.pop("in_time", 0))
        self._start = stored

    @property
    def grid_wh(self) -> float:
        """Grid energy of the running slot so far, import positive: by the counters where they are fine, else integrated."""
        if self._by_counters is not None:
            return self._by_counters
        return self._integrals["import"] - self._integrals["export"]

    def update(self, image: SiteImage) -> list[IntervalEnergy]:
        """Take an image; returns the energy of the slots that have ended since the last one.

        When the gateway was away over more than one boundary, the counters still tell the energy of all of these slots together: it
        is spread evenly and marked incomplete, so that no energy is missing in the sum.
        """
        self._integrate(image)
        self._by_counters = self._grid_by_counters(image.time_ns)
        slot = slot_start_ns(image.time_ns, SLOT_S)
        if slot == self._slot_ns:
            return []
        now = self._read(image.time_ns)
        if now is None:
            if image.time_ns - slot < _GAP_NS:
                return []  # a device is away at the boundary: wait a little for it
            now = {}
        count = (slot - self._slot_ns) // SLOT_NS
        done: list[IntervalEnergy] = []
        if self._slot_ns and count == 1:
            done = [self._finish(now)]
        elif self._slot_ns and now and count <= _SPREAD_AT_MOST:
            done = self._spread(now, count)
        self._slot_ns, self._start = slot, now
        self._integrals = dict.fromkeys(COUNTERS, 0.0)
        self._in_time = self._complete = image.time_ns - slot <= _GAP_NS
        self._unsaved = True
        return done

    def _integrate(self, image: SiteImage) -> None:
        last, self._last = self._last, image
        if last is None:
            return
        hours = (image.time_ns - last.time_ns) / 3.6e12
        if image.grid_power_w is None or image.time_ns - last.time_ns > _GAP_NS:
            self._complete = False
            return
        pairs = (("import", "export", image.grid_power_w.value), ("charge", "discharge", image.battery_power_w))
        for into, out, power in pairs:
            if power is None:
                self._complete = False
            elif power >= 0:
                self._integrals[into] += power * hours
            else:
                self._integrals[out] -= power * hours
        self._integrals["pv"] += -(image.pv_power_w or 0.0) * hours

    def _grid_by_counters(self, now_ns: int) -> float | None:
        if self._uncounted & {"import", "export"}:
            return None
        total = 0.0
        for counter in self._counters:
            if counter.name not in {"import", "export"}:
                continue
            value = self._maker.read(counter.device, counter.point, now_ns)
            if value is None or not counter.fine or counter.name not in self._start:
                return None
            moved = value - self._start[counter.name]
            total += moved if counter.name == "import" else -moved
        return total if self._start else None

    def _read(self, now_ns: int) -> dict[str, float] | None:
        """All counters now, summed by name; none when one is away."""
        totals: dict[str, float] = {}
        for counter in self._counters:
            value = self._maker.read(counter.device, counter.point, now_ns)
            if value is None:
                return None
            totals[counter.name] = totals.get(counter.name, 0.0) + value
        return totals

    def _finish(self, now: dict[str, float]) -> IntervalEnergy:
        coarse = self._uncounted | {counter.name for counter in self._counters if not counter.fine}
        energies: dict[str, float] = {}
        integral = False
        for name in COUNTERS:
            moved = now[name] - self._start[name] if name in now and name in self._start else -1.0
            if moved >= 0 and name not in coarse:  # a counter that ran backwards was reset: its difference says nothing
                energies[name] = moved
            else:
                energies[name] = self._integrals[name]
                integral |= name in self._uncounted or any(counter.name == name for counter in self._counters)
        whole = {name: max(0, round(energy)) for name, energy in energies.items()}
        complete = self._in_time and (self._complete or not integral)
        return self._interval(self._slot_ns, whole, "integral" if integral else "register", complete=complete)

    def _interval(self, slot_ns: int, whole: Mapping[str, int], method: str, *, complete: bool) -> IntervalEnergy:
        load = whole["import"] + whole["pv"] + whole["discharge"] - whole["export"] - whole["charge"]
        return IntervalEnergy(
            site_id=self._site,
            slot_start_ns=slot_ns,
            slot_s=SLOT_S,
            import_wh=whole["import"],
            export_wh=whole["export"],
            pv_wh=whole["pv"],
            battery_charge_wh=whole["charge"],
            battery_discharge_wh=whole["discharge"],
            load_wh=max(0, load),
            method=method,
            complete=complete,
        )

    def _spread(self, now: dict[str, float], count: int) -> list[IntervalEnergy]:
        """The counters' differences over several slots, in equal whole parts; the odd watt-hours go to the first ones."""
        totals = {
            name: max(0, round(now.get(name, 0.0) - self._start.get(name, now.get(name, 0.0)))) for name in COUNTERS
        }
        slots = []
        for index in range(count):
            whole = {name: total // count + (index < total % count) for name, total in totals.items()}
            slots.append(self._interval(self._slot_ns + index * SLOT_NS, whole, "register", complete=False))
        return slots

    def save(self) -> None:
        """Keep the counters at the running slot's start, once a slot, so that a restart goes on from them.

        Raises:
            sqlite3.Error: The disk does not take it; the next call tries again.
        """
        if not self._unsaved:
            return
        with self._db:
            self._db.execute("DELETE FROM metering")
            values = {**self._start, "slot": self._slot_ns // 1_000_000_000, "in_time": self._in_time}
            self._db.executemany("INSERT INTO metering VALUES (?, ?)", values.items())
        self._unsaved = False


def _counters(drivers: Mapping[str, Driver], grid_meter: str) -> tuple[Sequence[_Counter], frozenset[str]]:
    """The counters that the site's devices have, and the energies of which some device has none."""
    wanted = {
        AssetKind.INVERTER: {"pv": "energy_produced_wh"},
        AssetKind.BATTERY: {"charge": "energy_charged_wh", "discharge": "energy_discharged_wh"},
        AssetKind.METER: {"import": "energy_import_wh", "export": "energy_export_wh"},
    }
    found: list[_Counter] = []
    uncounted: set[str] = set()
    for device, driver in drivers.items():
        if driver.asset.kind is AssetKind.METER and device != grid_meter:
            continue
        for name, point_id in wanted.get(driver.asset.kind, {}).items():
            point = next((point for point in driver.asset.points if point.id == point_id), None)
            if point is None:
                uncounted.add(name)
            else:
                fine = point.resolution is None or point.resolution <= FINE_WH
                found.append(_Counter(name, device, point_id, fine))
    return found, frozenset(uncounted)
