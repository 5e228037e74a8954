"""What a community wants of its members' exchanges, by rounds of messages: the sharing problem, solved by ADMM.

Each member answers a wish with the exchange that suits it best (``CoordinationRound`` → ``CoordinationReply``); the sum of the
answers costs the community its highest hour and its ramps. Boyd et al. (2011), Distributed Optimization and Statistical Learning
via ADMM, section 7.3, in its scaled form:

    x_i ← argmin f_i(x) + ρ/2 ‖x − x_i + x̄ − z̄ + u‖²,   z̄ ← argmin g(N z) + N ρ/2 ‖z − u − x̄‖²,   u ← u + x̄ − z̄

The members' problems have efficiencies and two prices, so the sum is convex where nobody charges and discharges at a time; a member
that does not answer keeps its last answer, and one that never did has no part in it. Nothing of a member but its exchange is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wattmesh_cloud.planning.problem import Array

_ITERATIONS = 400
_STEP = 0.2
"""Below one over the largest eigenvalue (5) of the dual's Hessian: four of the steps, one of the peaks."""


@dataclass(slots=True, kw_only=True)
class Sharing:
    """The state of one agreement, kW; one value a slot."""

    steps: int
    slot_s: int
    peak_price: float
    """Currency a kW of the highest slot."""
    ramp_price: float
    """Currency a kW of change."""
    weight: float
    """ρ: currency per kW² and hour."""
    before_kw: float | None = None
    """Exchange of the community in the slot before; none for unknown."""
    answers: dict[str, Array] = field(default_factory=dict)
    _mean: Array = field(init=False)
    _wanted: Array = field(init=False)
    _price: Array = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is wished before the first answers."""
        self._mean = np.zeros(self.steps)
        self._wanted = np.zeros(self.steps)
        self._price = np.zeros(self.steps)

    def take(self, answers: dict[str, Array]) -> None:
        """The answers of a round: find what the community would like of their mean, and charge the difference."""
        first = not self.answers
        self.answers.update(answers)
        if not self.answers:
            return
        self._mean = np.mean(list(self.answers.values()), axis=0)
        self._wanted = self._liked(self._mean + self._price)
        if first:
            return  # alone: there was no wish yet that they could have missed
        self._price = self._price + self._mean - self._wanted

    def wish(self, member: str) -> Array:
        """What a member is asked to come near to in the next round."""
        own = self.answers.get(member, self._mean)
        return own - self._mean + self._wanted - self._price

    def total_kw(self) -> Array:
        """Exchange of all members by their last answers."""
        return np.sum(list(self.answers.values()), axis=0) if self.answers else np.zeros(self.steps)

    def cost(self, total_kw: Array) -> float:
        """What the community pays for its highest slot and its ramps."""
        ramps = np.abs(np.diff(total_kw)).sum()
        if self.before_kw is not None and len(total_kw):
            ramps += abs(total_kw[0] - self.before_kw)
        return float(self.peak_price * max(0.0, total_kw.max(initial=0.0)) + self.ramp_price * ramps)

    def _liked(self, near: Array) -> Array:
        """The mean exchange that costs the community least with the distance to ``near``."""
        scale = 1 / (self.weight * self.slot_s / 3600)  # of N prices over N ρ
        before = None if self.before_kw is None else self.before_kw / max(1, len(self.answers))
        return flattened(near, scale * self.peak_price, scale * self.ramp_price, before)


def flattened(near: Array, peak: float, ramp: float, before: float | None = None) -> Array:
    """The point with the least ½ ‖z − near‖² + peak · max(0, max z) + ramp · Σ |z_t − z_{t−1}|.

    By accelerated projected gradient on its dual (Beck and Teboulle 2009, doi 10.1137/080716542): a price a step between −ramp and
    ramp, and prices of the highest slots that are not negative and sum to no more than ``peak``.

    Args:
        near: One value a slot.
        peak: Price of the highest.
        ramp: Price of a change.
        before: Value before the first; its change to the first counts too.
    """
    steps, most = len(near), np.full(len(near), ramp)
    if before is None:
        most[0] = 0.0
    start = 0.0 if before is None else before

    def point(ramps: Array, peaks: Array) -> Array:
        result: Array = near - ramps + np.append(ramps[1:], 0.0) - peaks
        return result

    ramps, peaks = np.zeros(steps), np.zeros(steps)
    last_ramps, last_peaks, pace = ramps, peaks, 1.0
    for _ in range(_ITERATIONS):
        z = point(ramps, peaks)
        new_ramps = np.clip(ramps + _STEP * (z - np.concatenate([[start], z[:-1]])), -most, most)
        new_peaks = capped(peaks + _STEP * z, peak)
        new_pace = (1 + (1 + 4 * pace * pace) ** 0.5) / 2
        push = (pace - 1) / new_pace
        ramps, peaks = new_ramps + push * (new_ramps - last_ramps), new_peaks + push * (new_peaks - last_peaks)
        last_ramps, last_peaks, pace = new_ramps, new_peaks, new_pace
    return point(last_ramps, last_peaks)


def capped(values: Array, total: float) -> Array:
    """The nearest point with no value below 0 and a sum of at most ``total`` (Duchi et al. 2008)."""
    positive = np.maximum(values, 0.0)
    if positive.sum() <= total:
        return positive
    if total <= 1e-12:
        return np.zeros(len(values))
    falling = np.sort(values)[::-1]
    over = (np.cumsum(falling) - total) / np.arange(1, len(values) + 1)
    result: Array = np.maximum(values - over[np.flatnonzero(falling >= over)[-1]], 0.0)
    return result
