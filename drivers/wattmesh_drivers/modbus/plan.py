"""Which blocks to read: the fewest requests, then the fewest registers, for points of known place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

REQUEST_COST_REGISTERS = 40.0
"""What one more request costs, in registers: round trip and framing over TCP (facts: about 70 µs of CPU, 8-9 bytes of
header and footer, and the device's latency) against 2 bytes a register."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Registers that have to be read together: one value, or a group that has to be of one moment."""

    function: int
    start: int
    """First register."""
    end: int
    """One past the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One request."""

    function: int
    start: int
    count: int


def plan_blocks(
    spans: Sequence[Span],
    max_registers: int,
    *,
    request_cost: float = REQUEST_COST_REGISTERS,
    barriers: frozenset[int] = frozenset(),
) -> list[Block]:
    """The cheapest set of blocks that covers every span.

    Optimal by dynamic programming over the spans in order of address: a block reads consecutive spans, and its cost is
    ``request_cost`` plus its registers, holes included.

    Args:
        spans: What has to be read; overlapping ones are fine.
        max_registers: Limit of one request.
        request_cost: Cost of a request in registers.
        barriers: Registers that no block may contain, because the device refuses them.

    Raises:
        ValueError: One span alone is longer than ``max_registers``.
    """
    blocks: list[Block] = []
    for function in sorted({span.function for span in spans}):
        blocks += _plan_function(
            function, [span for span in spans if span.function == function], max_registers, request_cost, barriers
        )
    return blocks


def _plan_function(
    function: int, spans: list[Span], max_registers: int, request_cost: float, barriers: frozenset[int]
) -> list[Block]:
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first n spans, and where their last block begins
    for last in range(len(ordered)):
        end = 0
        choice = (float("inf"), last)
        for first in range(last, -1, -1):
            end = max(end, ordered[first].end)
            start = ordered[first].start
            if end - start > max_registers or any(start <= barrier < end for barrier in barriers):
                break
            cost = best[first][0] + request_cost + (end - start)
            if cost < choice[0]:
                choice = (cost, first)
        if choice[0] == float("inf"):
            span = ordered[last]
            raise ValueError(f"registers {span.start} to {span.end - 1} do not fit one request of {max_registers}")
        best.append(choice)
    blocks: list[Block] = []
    stop = len(ordered)
    while stop:
        first = best[stop][1]
        start = ordered[first].start
        end = max(span.end for span in ordered[first:stop])
        blocks.append(Block(function=function, start=start, count=end - start))
        stop = first
    return blocks[::-1]
