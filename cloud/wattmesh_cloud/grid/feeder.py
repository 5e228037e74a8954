"""A radial feeder: powers and voltages from what its sites take, by linearised DistFlow.

    P_ij = Σ p below j,   Q_ij = Σ q below j,   v_j² = v_i² − 2 (r P_ij + x Q_ij)

(Baran and Wu, *Optimal capacitor placement on radial distribution systems*, IEEE Trans. Power Delivery 4(1), 1989, without the loss
terms; three-phase and balanced, v line to line, P and Q of all phases.) The terms left out are the lines' losses: voltages come out
a little too high under load; a test holds the error against the full power flow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wattmesh_a2a.errors import ConfigurationError

SOURCE = "transformer"
"""The node that a feeder hangs on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """From a node to the next one farther out."""

    start: str
    end: str
    r_ohm: float
    x_ohm: float
    limit_a: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A feeder with its loads."""

    voltage_pu: Mapping[str, float]
    """By node; 1 at the transformer."""
    line_power_w: Mapping[str, float]
    """Active power into each line, by the node at its end."""
    line_current_a: Mapping[str, float]
    source_w: float
    source_va: float


class Feeder:
    """See the module.

    Args:
        lines: A tree that hangs on :data:`SOURCE`.
        nominal_v: Line to line.
        rated_va: Of the transformer.

    Raises:
        ConfigurationError: The lines are no tree, or a number makes no sense; names the node.
    """

    def __init__(self, lines: Sequence[Line], *, nominal_v: float, rated_va: float) -> None:
        self.lines = {line.end: line for line in lines}
        self.nominal_v, self.rated_va = nominal_v, rated_va
        if len(self.lines) != len(lines):
            twice = next(line.end for line in lines if [one.end for one in lines].count(line.end) > 1)
            raise ConfigurationError(f"two lines end at node {twice!r}: a feeder is a tree")
        self.order = self._outward(lines)

    def _outward(self, lines: Sequence[Line]) -> list[str]:
        """Nodes from the transformer outwards."""
        if SOURCE in self.lines:
            raise ConfigurationError(f"a line leads back to {SOURCE!r}: a feeder is a tree")
        order, known = [], {SOURCE}
        left = list(lines)
        while left:
            near = [line for line in left if line.start in known]
            if not near:
                raise ConfigurationError(f"node {left[0].end!r} is not connected to {SOURCE!r}")
            for line in near:
                known.add(line.end)
                order.append(line.end)
            left = [line for line in left if line.end not in known]
        return order

    @property
    def nodes(self) -> frozenset[str]:
        """All of them, with the transformer."""
        return frozenset(self.order) | {SOURCE}

    def distance(self, node: str) -> int:
        """Lines between a node and the transformer."""
        count = 0
        while node != SOURCE:
            node = self.lines[node].start
            count += 1
        return count

    def flow(self, active_w: Mapping[str, float], reactive_var: Mapping[str, float], source_pu: float = 1.0) -> Flow:
        """Powers and voltages.

        Args:
            active_w: Power taken at each node; a node that is not named takes nothing.
            reactive_var: The same for reactive power.
            source_pu: Voltage at the transformer.
        """
        below_p = {node: active_w.get(node, 0.0) for node in self.nodes}
        below_q = {node: reactive_var.get(node, 0.0) for node in self.nodes}
        for node in reversed(self.order):
            start = self.lines[node].start
            below_p[start] += below_p[node]
            below_q[start] += below_q[node]
        base = self.nominal_v * self.nominal_v
        squares = {SOURCE: source_pu * source_pu}
        for node in self.order:
            line = self.lines[node]
            drop = 2 * (line.r_ohm * below_p[node] + line.x_ohm * below_q[node]) / base
            squares[node] = max(0.0, squares[line.start] - drop)
        voltages = {node: math.sqrt(square) for node, square in squares.items()}
        currents = {
            node: math.hypot(below_p[node], below_q[node])
            / (math.sqrt(3) * self.nominal_v * max(0.1, voltages[self.lines[node].start]))
            for node in self.order
        }
        return Flow(
            voltage_pu=voltages,
            line_power_w={node: below_p[node] for node in self.order},
            line_current_a=currents,
            source_w=below_p[SOURCE],
            source_va=math.hypot(below_p[SOURCE], below_q[SOURCE]),
        )
