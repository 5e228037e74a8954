"""Learning from outcomes: each strategy parameter has a few stated values; a day's result moves belief in the one that was used.

Thompson sampling (Thompson 1933; Agrawal and Goyal, ICML 2013) with a Gaussian belief in each value's mean reward. What is tried
never leaves the stated values. The way back: a value that is likely worse than the default is left out until its belief has aged, a
parameter can be frozen at its default by a person, and what was learned can be forgotten.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from wattmesh_cloud.agents.database import Database

_DAY_NS = 86_400 * 1_000_000_000
_PRIOR_SPREAD = 0.05
"""Standard deviation of what is believed of an untried value's mean: rewards are shares of a usual day."""
_NOISE = 0.10
"""Standard deviation of a day's reward around its mean, before there is evidence."""
_MOST_WEIGHT = 30.0
"""Days of evidence that count: older ones fade, as houses and seasons change."""
_SURE = 1.645
"""Of a one-sided 95 % statement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A number of a policy that may be learned."""

    agent: str
    meaning: str
    default: float
    values: tuple[float, ...]
    """All that may ever be used, ascending."""


PARAMETERS: dict[str, Parameter] = {
    "peak_factor": Parameter(
        agent="consumer",
        meaning="peak limit over the level that the battery could have held on the last days",
        default=1.5,
        values=(1.1, 1.5, 2.0),
    ),
    "peak_reserve": Parameter(
        agent="producer",
        meaning="share of the battery kept for the peaks above the limit",
        default=0.05,
        values=(0.05, 0.1, 0.2),
    ),
    "response_share": Parameter(
        agent="grid-optimisation",
        meaning="share of the expected peak that demand response asks for",
        default=0.3,
        values=(0.2, 0.3, 0.4),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What is known of one value."""

    value: float
    days: float
    mean: float
    spread: float
    """Standard deviation of the mean."""


class Learner:
    """Beliefs by subject and parameter, durable.

    Args:
        database: Keeps them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def settings(self, subject: str, agent: str, now_ns: int) -> dict[str, float]:
        """What to use today: the same all day, and the same again for the same beliefs."""
        frozen = {
            row[0] for row in self._database.rows("SELECT parameter FROM frozen WHERE subject IN (?, '*')", (subject,))
        }
        found = {}
        for name, parameter in PARAMETERS.items():
            known = parameter.agent == agent and name not in frozen
            found[name] = self._choose(subject, name, parameter, now_ns) if known else parameter.default
        return found

    def _choose(self, subject: str, name: str, parameter: Parameter, now_ns: int) -> float:
        beliefs = self.beliefs(subject, name)
        default = next(one for one in beliefs if one.value == parameter.default)
        if default.days < 3:
            return parameter.default  # first what a usual day is worth
        digest = hashlib.sha256(f"{subject}/{name}/{now_ns // _DAY_NS}".encode()).digest()
        chance = random.Random(int.from_bytes(digest[:8], "big"))
        best, drawn = parameter.default, -math.inf
        for one in beliefs:
            sample = chance.gauss(one.mean, one.spread)
            if likely_worse(one, default):
                continue
            if sample > drawn:
                best, drawn = one.value, sample
        return best

    def beliefs(self, subject: str, name: str) -> list[Belief]:
        """Of every stated value."""
        parameter = PARAMETERS[name]
        rows = {
            row[0]: row[1:]
            for row in self._database.rows(
                "SELECT value, count, mean, squares FROM arms WHERE subject = ? AND parameter = ?", (subject, name)
            )
        }
        base = rows.get(parameter.default)
        prior = base[1] if base is not None else 0.0
        return [_belief(value, rows.get(value), prior) for value in parameter.values]

    def outcome(self, subject: str, name: str, value: float, reward: float) -> bool:
        """A day's result with a value in use; false where the value is none of the stated ones or the reward no number."""
        parameter = PARAMETERS.get(name)
        if parameter is None or value not in parameter.values or not math.isfinite(reward):
            return False
        reward = min(2.0, max(-2.0, reward))
        rows = self._database.rows(
            "SELECT count, mean, squares FROM arms WHERE subject = ? AND parameter = ? AND value = ?",
            (subject, name, value),
        )
        count, mean, squares = rows[0] if rows else (0, 0.0, 0.0)
        weight = min(count + 1, _MOST_WEIGHT)
        step = reward - mean
        mean += step / weight
        squares += (step * (reward - mean) - squares) / weight
        self._database.write(
            ("INSERT OR REPLACE INTO arms VALUES (?, ?, ?, ?, ?, ?)", (subject, name, value, count + 1, mean, squares))
        )
        return True

    def freeze(self, subject: str, name: str, actor: str, now_ns: int) -> None:
        """Use the default from now on; ``*`` for every subject."""
        self._database.write(("INSERT OR REPLACE INTO frozen VALUES (?, ?, ?, ?)", (subject, name, actor, now_ns)))

    def thaw(self, subject: str, name: str) -> None:
        """Learn again."""
        self._database.write(("DELETE FROM frozen WHERE subject = ? AND parameter = ?", (subject, name)))

    def forget(self, subject: str) -> None:
        """Begin anew from the defaults."""
        self._database.write(("DELETE FROM arms WHERE subject = ?", (subject,)))

    def report(self) -> Mapping[str, Mapping[str, list[Belief]]]:
        """Subject → parameter → beliefs, of all that have evidence."""
        found: dict[str, dict[str, list[Belief]]] = {}
        for subject, name in self._database.rows("SELECT DISTINCT subject, parameter FROM arms ORDER BY 1, 2"):
            if name in PARAMETERS:
                found.setdefault(subject, {})[name] = self.beliefs(subject, name)
        return found


def likely_worse(one: Belief, default: Belief) -> bool:
    """Whether a value is worse than the default by evidence, at 95 %."""
    if one.value == default.value or one.days < 3:
        return False
    return one.mean + _SURE * math.hypot(one.spread, default.spread) < default.mean


def _belief(value: float, row: tuple[float, ...] | None, prior: float) -> Belief:
    """A normal mean with a normal prior around the default's mean; the noise is the evidence's own once there are five days."""
    count, mean, squares = row if row is not None else (0, 0.0, 0.0)
    days = min(float(count), _MOST_WEIGHT)
    noise = math.sqrt(squares) if count >= 5 and squares > 0 else _NOISE
    noise = max(noise, 0.02)
    precision = 1 / _PRIOR_SPREAD**2 + days / noise**2
    centre = (prior / _PRIOR_SPREAD**2 + days * mean / noise**2) / precision
    return Belief(value=value, days=days, mean=centre, spread=1 / math.sqrt(precision))
