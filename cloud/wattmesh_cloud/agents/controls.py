"""What a person holds in hand over the models: the switch that turns all of them off, and what they may spend."""

from __future__ import annotations

from dataclasses import dataclass

from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.audit import AuditLog

_DAY_NS = 86_400 * 1_000_000_000
_ALL = "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchState:
    """Whether models may answer, and who said so."""

    on: bool
    actor: str
    reason: str
    time_ns: int


class KillSwitch:
    """Turns all models off at once; looked at before a model is asked and again before its proposal has an effect.

    Args:
        database: Keeps it over restarts, and shares it with other processes.
        audit: Gets every change.
    """

    def __init__(self, database: Database, audit: AuditLog | None = None) -> None:
        self._database, self._audit = database, audit

    def state(self) -> SwitchState:
        """As it stands; on where nobody ever touched it."""
        rows = self._database.rows("SELECT off, actor, reason, time_ns FROM switch WHERE name = ?", (_ALL,))
        if not rows:
            return SwitchState(on=True, actor="", reason="", time_ns=0)
        off, actor, reason, time_ns = rows[0]
        return SwitchState(on=not off, actor=actor, reason=reason, time_ns=time_ns)

    def off(self, actor: str, reason: str, now_ns: int) -> None:
        """No model has an effect from now on."""
        self._set(actor, reason, now_ns, off=True)

    def on(self, actor: str, reason: str, now_ns: int) -> None:
        """Models may refine again."""
        self._set(actor, reason, now_ns, off=False)

    def _set(self, actor: str, reason: str, now_ns: int, *, off: bool) -> None:
        row = (_ALL, int(off), actor[:200], reason[:400], now_ns)
        self._database.write(("INSERT OR REPLACE INTO switch VALUES (?, ?, ?, ?, ?)", row))
        if self._audit is not None:
            self._audit.write(now_ns, actor, f"models.{'off' if off else 'on'}", "done", {"reason": reason})


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLimits:
    """What one agent's model may use in a day (UTC)."""

    tokens: int = 200_000
    cost: float = 2.0
    """In the currency of the prices."""
    calls: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What an agent's model used in a day."""

    tokens: int = 0
    cost: float = 0.0
    calls: int = 0


class Budget:
    """Tokens, money and calls an agent and a day. A call reserves its most before it begins and gives back what it did not use.

    Args:
        database: Keeps the sums.
        limits: A day's.
        input_price: Currency per million tokens read.
        output_price: Currency per million tokens written.
    """

    def __init__(self, database: Database, limits: BudgetLimits, *, input_price: float, output_price: float) -> None:
        self._database, self.limits = database, limits
        self._prices = input_price, output_price

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """What tokens cost."""
        return (input_tokens * self._prices[0] + output_tokens * self._prices[1]) / 1e6

    def spent(self, agent: str, now_ns: int) -> Spent:
        """Of the day, with what is reserved."""
        rows = self._database.rows(
            "SELECT tokens, cost_micros, calls FROM spent WHERE agent = ? AND day = ?", (agent, now_ns // _DAY_NS)
        )
        return Spent(tokens=rows[0][0], cost=rows[0][1] / 1e6, calls=rows[0][2]) if rows else Spent()

    def reserve(self, agent: str, tokens: int, now_ns: int) -> str | None:
        """Take a call's most out of the day's budget; the reason where it does not fit, and then nothing is taken."""
        cost = self.cost(0, tokens)
        most = self.limits
        day = now_ns // _DAY_NS
        taken = self._database.write(
            ("INSERT OR IGNORE INTO spent VALUES (?, ?, 0, 0, 0)", (agent, day)),
            (
                "UPDATE spent SET tokens = tokens + ?, cost_micros = cost_micros + ?, calls = calls + 1 WHERE agent = ? AND day = ?"
                " AND tokens + ? <= ? AND cost_micros + ? <= ? AND calls < ?",
                (
                    *(tokens, round(cost * 1e6), agent, day),
                    *(tokens, most.tokens, round(cost * 1e6), round(most.cost * 1e6), most.calls),
                ),
            ),
        )
        if taken:
            return None
        spent = self.spent(agent, now_ns)
        return f"{spent.tokens} of {most.tokens} tokens, {spent.cost:.2f} of {most.cost:.2f}, {spent.calls} of {most.calls} calls"

    def settle(self, agent: str, reserved: int, input_tokens: int, output_tokens: int, now_ns: int) -> None:
        """Book what a call used in the place of what it had reserved (on the day on which it was reserved)."""
        change = input_tokens + output_tokens - reserved
        micros = round((self.cost(input_tokens, output_tokens) - self.cost(0, reserved)) * 1e6)
        self._database.write(
            (
                "UPDATE spent SET tokens = MAX(0, tokens + ?), cost_micros = MAX(0, cost_micros + ?) WHERE agent = ? AND day = ?",
                (change, micros, agent, now_ns // _DAY_NS),
            )
        )
