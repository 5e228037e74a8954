"""What came of decisions: yesterday's meters and settled events, written beside the decisions and given to the learner."""

from __future__ import annotations

from typing import Any

from wattmesh_a2a.messages import IntervalEnergy

from wattmesh_cloud.agents.learning import PARAMETERS, Learner
from wattmesh_cloud.agents.looks import Sources
from wattmesh_cloud.agents.memory import LocalMemory
from wattmesh_cloud.agents.situations import SLOT_NS, SLOTS_A_DAY

_DAY_NS = SLOTS_A_DAY * SLOT_NS
_ENOUGH_SLOTS = 80
"""Of a day's 96: with fewer, nothing is learned from it."""
_LEAST_W = 200.0
_LEAST_COST = 1_000_000
"""0.10 in the currency's unit a day."""
_OUTCOMES = 60


class Feedback:
    """See the module.

    Args:
        memory: Where decisions are.
        learner: What is told the results.
        sources: For the grid's events.
    """

    def __init__(self, memory: LocalMemory, learner: Learner, sources: Sources) -> None:
        self._memory, self._learner, self._sources = memory, learner, sources
        self._days: dict[tuple[str, int], dict[int, tuple[int, int, int]]] = {}
        """(site, day) → slot → import, export, and load less PV, Wh."""
        config = sources.market_config
        self._tariff = config.tariff.tariff(config.time_zone)

    def interval(self, site: str, reading: IntervalEnergy) -> None:
        """Take a whole quarter hour."""
        day = reading.slot_start_ns // _DAY_NS
        rows = self._days.setdefault((site, day), {})
        rows[reading.slot_start_ns] = (reading.import_wh, reading.export_wh, reading.load_wh - reading.pv_wh)

    def day_over(self, now_ns: int) -> int:
        """Close every day before today; how many outcomes were written. Calls block: use a thread."""
        today, written = now_ns // _DAY_NS, 0
        for site, day in sorted(key for key in self._days if key[1] < today):
            rows = self._days.pop((site, day))
            if len(rows) >= _ENOUGH_SLOTS and day == today - 1:
                written += self._site_day(site, day, rows)
        return written + self._events()

    def _site_day(self, site: str, day: int, rows: dict[int, tuple[int, int, int]]) -> int:
        came = {
            "day": day,
            "import_wh": sum(row[0] for row in rows.values()),
            "peak_import_w": max(row[0] for row in rows.values()) * 4,
            "peak_without_battery_w": max(0, *(row[2] for row in rows.values())) * 4,
            "slots": len(rows),
            "cost_units": self._cost({slot: (row[0], row[1]) for slot, row in rows.items()}),
            "cost_without_battery_units": self._cost(
                {slot: (max(0, row[2]), max(0, -row[2])) for slot, row in rows.items()}
            ),
        }
        rewards = rewards_of(came)
        written = 0
        for agent in ("producer", "consumer"):
            decisions = self._memory.span(site, agent, day * _DAY_NS, (day + 1) * _DAY_NS)
            written += self._memory.outcome_of(decisions, came)
            settings = _settings_of(decisions)
            for name, value in (settings or {}).items():
                if PARAMETERS[name].agent == agent and agent in rewards:
                    self._learner.outcome(site, name, value, rewards[agent])
        return written

    def _cost(self, rows: dict[int, tuple[int, int]]) -> int:
        """What import costs less what export brings, at the retailer's prices, in tick · Wh."""
        feed_in = self._tariff.feed_in_ticks()
        return sum(
            bought * self._tariff.import_price_ticks(slot) - sold * feed_in for slot, (bought, sold) in rows.items()
        )

    def _events(self) -> int:
        """Settled demand response, beside the decision that called it."""
        grid = self._sources.grid
        if grid is None or not grid.settled:
            return 0
        written = 0
        settled: dict[int, dict[str, Any]] = {int(str(row["start_ns"])): dict(row) for row in grid.settled[-10:]}
        for decision in self._memory.recall("fleet", agent="grid-optimisation", limit=_OUTCOMES):
            called = [
                entry["proposal"]
                for entry in decision["entries"]
                if entry["outcome"] == "done" and entry["proposal"].get("kind") == "call_response"
            ]
            row = settled.get(called[0]["start_ns"]) if called else None
            if row is None or decision["outcome"] is not None:
                continue
            delivered, asked = sum(row["delivered_wh"].values()), -row["target_w"] * _hours(row)
            came = {
                "event": row["id"],
                "delivered_wh": delivered,
                "asked_wh": round(asked),
                "offers": len(row["offers"]),
            }
            written += self._memory.outcome_of([decision], came)
            share = decision["situation"].get("settings", {}).get("response_share")
            if share is not None and asked > 0:
                # Energy taken off the expected peak, as a share of it: what was asked and not delivered is worth nothing.
                self._learner.outcome("fleet", "response_share", share, share * delivered / asked)
        return written


def rewards_of(came: dict[str, int]) -> dict[str, float]:
    """A day's result by agent: the consumer's is the peak, the producer's the cost, both against the same day without a battery.

    So a hot day and a mild one can be compared; days on which there was nothing to gain say nothing.
    """
    found = {}
    if came["peak_without_battery_w"] >= _LEAST_W:
        found["consumer"] = 1 - came["peak_import_w"] / came["peak_without_battery_w"]
    if came["cost_without_battery_units"] >= _LEAST_COST:
        found["producer"] = 1 - came["cost_units"] / came["cost_without_battery_units"]
    return found


def _hours(row: dict[str, Any]) -> float:
    return (int(row["end_ns"]) - int(row["start_ns"])) / 3.6e12


def _settings_of(decisions: list[dict[str, Any]]) -> dict[str, float] | None:
    """The parameters that held all day; none where they did not."""
    seen = [one["situation"].get("settings", {}) for one in decisions]
    if not seen or any(one != seen[0] for one in seen):
        return None
    return {name: value for name, value in seen[0].items() if name in PARAMETERS}
