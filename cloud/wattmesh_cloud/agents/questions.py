"""An operator's questions in words, answered from records: a known set by templates, each sentence with the records it rests on.

Nothing here needs a model or a running cloud: it reads the store and the agents' memory. A model may word an answer better
(:meth:`wattmesh_cloud.agents.service.AgentsService.ask`); it never replaces the records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta, tzinfo
from typing import Any

from wattmesh_cloud.agents.approvals import ApprovalQueue
from wattmesh_cloud.agents.learning import PARAMETERS, Learner
from wattmesh_cloud.agents.memory import LocalMemory
from wattmesh_cloud.agents.situations import SLOT_NS
from wattmesh_cloud.store.base import Item, Store, Table

_NS = 1_000_000_000
_DAY_NS = 86_400 * _NS
_FOR_EVER = 2**62
_WORDS = ("midnight", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "noon")
_NUMBERS = {word: number for number, word in enumerate(_WORDS)}
_LONGEST = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """A record that an answer rests on."""

    id: str
    """``TABLE/PARTITION/TIME/ID`` of the store, or a decision's id."""
    time_ns: int


@dataclass(slots=True, kw_only=True)
class Answer:
    """What an operator gets."""

    question: str
    kind: str
    """Which of the known questions it was taken for; ``unknown`` where it was none of them."""
    text: str
    citations: list[Citation] = field(default_factory=list)
    source: str = "template"
    detail: str = ""
    """What became of asking a model."""
    approval: str | None = None
    """Id of a proposal that waits for a person because of it."""

    def plain(self) -> dict[str, Any]:
        """For API and console."""
        row = {name: getattr(self, name) for name in self.__slots__ if name != "citations"}
        return {**row, "citations": [{"id": one.id, "time_ns": one.time_ns} for one in self.citations]}


class Questions:
    """See the module. Calls block: callers on an event loop use a thread.

    Args:
        store: The records.
        memory: The agents' decisions.
        approvals: What waits for a person.
        learner: What was learned.
        area: The market's.
        zone: Of the operator's clock.
        sites: All of them.
    """

    def __init__(
        self,
        store: Store,
        memory: LocalMemory,
        approvals: ApprovalQueue,
        learner: Learner,
        *,
        area: str,
        zone: tzinfo,
        sites: Sequence[str],
    ) -> None:
        self._store, self._memory, self._approvals, self._learner = store, memory, approvals, learner
        self._area, self.zone, self.sites = area, zone, sorted(sites)

    def answer(self, question: str, now_ns: int, allowed: frozenset[str] | None = None) -> Answer:
        """The answer from records; for a caller with sites of its own (``allowed``) about those alone."""
        words = " ".join(question[:_LONGEST].lower().replace("'s", "").split()).rstrip("?.! ")
        for kind, pattern, build in self._known():
            found = re.search(pattern, words)
            if found is None:
                continue
            answer = Answer(question=question[:_LONGEST], kind=kind, text="")
            name = found.groupdict().get("site")
            site = self.site(name) if name else None
            if name and site is None:
                answer.text = f"There is no site {name!r}; there are: {', '.join(self.sites[:20])}."
            elif allowed is not None and (site is None or site not in allowed):
                answer.text = "That is about sites that are not yours."
            else:
                build(answer, found, site or "", now_ns)
            return answer
        known = "; ".join(EXAMPLES)
        return Answer(question=question[:_LONGEST], kind="unknown", text=f"I can answer without a model: {known}.")

    def site(self, name: str) -> str | None:
        """The site that a word means: its id, or the only one that ends with it."""
        exact = [site for site in self.sites if site.lower() == name]
        ending = [site for site in self.sites if re.search(rf"(^|[^0-9a-z]){re.escape(name)}$", site.lower())]
        found = exact or ending
        return found[0] if len(found) == 1 else None

    def _known(self) -> list[tuple[str, str, Callable[[Answer, re.Match[str], str, int], None]]]:
        site = r"(?:site )?(?P<site>[a-z0-9_.-]+)"
        at = r"\w*(?: \w+)*? (?:at|around) (?P<time>.+)$"
        return [
            ("trade", rf"why did {site} (?:not )?(?P<what>sell|buy|trade){at}", self._trade),
            ("power", rf"why did {site} (?:not )?(?P<what>charge|discharge|import|export){at}", self._power),
            ("limit", rf"why is the import of {site} limited", self._strategy),
            ("strategy", rf"(?:why|what) .*strategy of {site}$", self._strategy),
            ("site", rf"(?:how is|what is the state of|what does) {site}(?: do| doing)?$", self._site),
            ("money", rf"what did {site} (?:cost|earn|pay)(?: (?P<when>today|yesterday))?$", self._money),
            ("halt", r"why (?:is|was) the market halted", self._halt),
            ("approval", r"what waits|waiting for (?:my |an )?approval", self._waiting),
            ("response", r"what came of .*demand response|how (?:was|went) .*demand response", self._response),
            ("grid", r"(?:what is the|how is the) (?:status of the )?grid", self._grid),
            ("forecast", rf"how good (?:is|are) the forecasts? of {site}$", self._forecast),
            ("learned", r"what (?:have|did) (?:you|the agents) learn", self._learned),
            ("decided", r"what did the agents (?:decide|do)", self._decided),
        ]  # fmt: skip

    # -- the answers

    def _trade(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        moment = self.moment(found["time"], now_ns)
        if moment is None:
            answer.text = f"I do not know what time {found['time']!r} is; say 18:00."
            return
        slot = moment - moment % SLOT_NS
        trades = self._rows(answer, Table.TRADE_DATA, f"{self._area}#trades", slot, of=site)
        bought = sum(int(str(row.data["quantity_wh"])) for row in trades if row.data["buyer_id"] == site)
        sold = sum(int(str(row.data["quantity_wh"])) for row in trades if row.data["seller_id"] == site)
        did = [f"sold {sold} Wh"] * bool(sold) + [f"bought {bought} Wh"] * bool(bought)
        parts = [f"In the slot of {self.when(slot)}, {site} {' and '.join(did) or 'traded nothing'}."]
        for row in self._rows(answer, Table.MARKET_DATA, f"{self._area}#slots", slot):
            price = row.data["price_ticks"]
            told = "did not clear" if price is None else f"cleared {row.data['volume_wh']} Wh at {_ct(price)}"
            parts.append(
                f"The area {told}, with {row.data['bid_wh']} Wh asked for and {row.data['offered_wh']} Wh offered."
            )
        for row in self._rows(answer, Table.CONSUMER_METRICS, site, slot):
            if row.id == "interval":
                parts.append(
                    f"It metered {row.data['pv_wh']} Wh of sun and {row.data['load_wh']} Wh of load: "
                    f"{row.data['export_wh']} Wh went out, {row.data['import_wh']} Wh came in."
                )
                if found["what"] == "sell" and not sold and int(str(row.data["export_wh"])) == 0:
                    parts.append("There was no surplus to sell.")
        parts += self._why_then(answer, site, ("producer",), slot)
        parts += self._why_then(answer, self._area, ("market-supervisor",), slot)
        answer.text = " ".join(parts)

    def _power(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        moment = self.moment(found["time"], now_ns)
        if moment is None:
            answer.text = f"I do not know what time {found['time']!r} is; say 18:00."
            return
        rows = self._store.query(
            Table.PRODUCER_METRICS, f"{site}#decisions", moment - SLOT_NS, moment + SLOT_NS, limit=200
        )
        near = sorted(rows, key=lambda row: abs(row.time_ns - moment))[:3]
        parts = [f"Around {self.when(moment)} the arbiter of {site} decided:"]
        for row in near:
            self._cite(answer, Table.PRODUCER_METRICS, row)
            limited = f", limited by {row.data['limited_by']}" if row.data.get("limited_by") else ""
            target = row.data.get("target_w")
            power = "nothing" if target is None else f"{float(str(target)):.0f} W"
            parts.append(f"{row.data['asset_id']}: {power}, by {row.data['decided_by']}{limited};")
        answer.text = " ".join(parts) if near else f"There is no decision of {site} around {self.when(moment)}."

    def _strategy(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        parts = self._why_then(answer, site, ("producer", "consumer"), now_ns)
        answer.text = " ".join(parts) or f"No strategy of {site or 'that site'} was decided yet."

    def _site(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        rows = self._store.query(Table.CONSUMER_METRICS, site, now_ns - _DAY_NS, now_ns, limit=1, newest_first=True)
        parts = []
        for row in rows:
            self._cite(answer, Table.CONSUMER_METRICS, row)
            parts.append(
                f"In the quarter hour of {self.when(row.time_ns)} {site} took {row.data['import_wh']} Wh from the grid and gave "
                f"{row.data['export_wh']} Wh, with {row.data['pv_wh']} Wh of sun and {row.data['load_wh']} Wh of load."
            )
        parts += self._why_then(answer, site, ("producer", "consumer"), now_ns)
        answer.text = " ".join(parts) or f"Nothing of {site} was metered in the last day."

    def _money(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        today = datetime.fromtimestamp(now_ns / _NS, tz=self.zone).replace(hour=0, minute=0, second=0, microsecond=0)
        start = today - timedelta(days=1) if found["when"] == "yesterday" else today
        low, high = round(start.timestamp()) * _NS, round((start + timedelta(days=1)).timestamp()) * _NS
        rows = self._store.query(Table.TRADE_DATA, f"{site}#settlements", low, high, limit=400)
        names = ("trade_units", "residual_units", "flexibility_units", "fee_units", "levy_units", "imbalance_units")
        total = [sum(int(str(row.data.get(name, 0))) for row in rows) / 1e7 for name in names]
        for row in (rows[0], rows[-1]) if rows else ():
            self._cite(answer, Table.TRADE_DATA, row)
        answer.text = (
            f"{site} paid {sum(total):.2f} on {start:%Y-%m-%d} over {len(rows)} settled slots: trades {total[0]:.2f}, retailer "
            f"{total[1]:.2f}, demand response {total[2]:.2f}, fees, levies and imbalance {sum(total[3:]):.2f}."
            if rows
            else f"Nothing of {site} was settled on {start:%Y-%m-%d} yet."
        )

    def _halt(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        for decision in self._memory.recall(self._area, agent="market-supervisor", limit=300):
            done = [one for one in decision["entries"] if one["outcome"] == "done"]
            for one in done:
                if one["proposal"].get("kind") in ("halt_market", "resume_market"):
                    answer.citations.append(Citation(id=decision["id"], time_ns=decision["time_ns"]))
                    said = one["proposal"]
                    answer.text = (
                        f"{self.when(decision['time_ns'])}: {said['kind'].replace('_', ' ')}: {said['rationale']}."
                    )
                    return
        answer.text = (
            "The market supervisor halted nothing that is remembered; an operator's halt stands in the audit log."
        )

    def _waiting(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        rows = self._approvals.requests(now_ns=now_ns)
        parts = []
        for one in rows[:10]:
            answer.citations.append(Citation(id=one.decision, time_ns=one.made_ns))
            parts.append(
                f"{one.id}: {one.agent} ({one.origin}) wants {one.proposal.kind}: {one.proposal.rationale}; "
                f"until {self.when(one.expires_ns)}."
            )
        answer.text = " ".join(parts) or "Nothing waits for a person."

    def _response(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        rows = self._store.query(Table.GRID_METRICS, "fleet#demand-response", 0, now_ns, limit=1, newest_first=True)
        for row in rows:
            self._cite(answer, Table.GRID_METRICS, row)
            delivered: Any = row.data.get("delivered_wh") or {}
            answer.text = (
                f"{row.id} at {self.when(row.time_ns)} asked for {row.data['target_w']} W and is {row.data['state']}: "
                f"{sum(delivered.values())} Wh were delivered by {len(delivered)} sites."
            )
        if not rows:
            answer.text = "There was no demand response yet."

    def _grid(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        rows = self._store.query(Table.GRID_METRICS, "fleet#grid", 0, _FOR_EVER, limit=1, newest_first=True)
        for row in rows:
            self._cite(answer, Table.GRID_METRICS, row)
            answer.text = f"{row.data['status']} since {self.when(row.time_ns)}: {row.data['reason']}."
        if not rows:
            answer.text = "Normal: nothing has been reported."

    def _forecast(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        for decision in self._memory.recall(site, agent="forecasting", limit=1):
            answer.citations.append(Citation(id=decision["id"], time_ns=decision["time_ns"]))
            errors = decision["situation"].get("error_wh") or {}
            told = [
                f"{name} {day:.0f} Wh a slot in the last day, {week:.0f} Wh in the week"
                for name, (day, week) in errors.items()
            ]
            answer.text = (
                f"Mean pinball loss at {self.when(decision['time_ns'])}: {'; '.join(told) or 'not scored yet'}."
            )
            return
        answer.text = f"The forecasts of {site} were not looked at yet."

    def _learned(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        parts: list[str] = []
        for subject, parameters in list(self._learner.report().items())[:20]:
            for name, beliefs in parameters.items():
                best = max(beliefs, key=lambda one: one.mean)
                parts.append(
                    f"{subject}: {name} {best.value:g} looks best of {', '.join(f'{one.value:g}' for one in beliefs)} "
                    f"(default {PARAMETERS[name].default:g}, {sum(one.days for one in beliefs):.0f} days)."
                )
        answer.text = " ".join(parts) or "Nothing yet: a day has to be over first."

    def _decided(self, answer: Answer, found: re.Match[str], site: str, now_ns: int) -> None:
        parts: list[str] = []
        for decision in self._memory.newest(60):
            done = [one["proposal"] for one in decision["entries"] if one["outcome"] == "done"]
            if done and len(parts) < 8:
                answer.citations.append(Citation(id=decision["id"], time_ns=decision["time_ns"]))
                kinds = ", ".join(one["kind"] for one in done)
                parts.append(
                    f"{self.when(decision['time_ns'])} {decision['agent']} about {decision['subject']}: {kinds}."
                )
        answer.text = " ".join(parts) or "Nothing yet."

    # -- what they share

    def _why_then(self, answer: Answer, subject: str, agents: Sequence[str], time_ns: int) -> list[str]:
        """What the agents had decided about a subject at a moment, with their reasons."""
        parts = []
        rows = self._memory.around(subject, time_ns, limit=40)
        for agent in agents:
            for decision in rows:
                done = [one for one in decision["entries"] if one["outcome"] == "done"]
                if decision["agent"] != agent or not done or time_ns - decision["time_ns"] > 2 * 3600 * _NS:
                    continue
                answer.citations.append(Citation(id=decision["id"], time_ns=decision["time_ns"]))
                for one in done:
                    said = one["proposal"]
                    value = {
                        key: each for key, each in said.items() if key not in ("kind", "rationale", "site_id", "area")
                    }
                    shown = ", ".join(f"{key} {each}" for key, each in value.items())
                    parts.append(
                        f"The {agent} agent ({one['origin']}) had said {said['kind']}: {shown}, because {said['rationale']}."
                    )
                break
        return parts

    def _rows(self, answer: Answer, table: Table, partition: str, slot: int, of: str | None = None) -> list[Item]:
        """The rows of a slot; with a site, only its trades are cited and nobody else's are seen."""
        rows = self._store.query(table, partition, slot, slot + SLOT_NS, limit=500)
        if of is not None:
            rows = [row for row in rows if of in (row.data["buyer_id"], row.data["seller_id"])]
        for row in rows[:5]:
            self._cite(answer, table, row)
        return rows

    def _cite(self, answer: Answer, table: Table, row: Item) -> None:
        answer.citations.append(Citation(id=f"{table}/{row.partition}/{row.time_ns}/{row.id}", time_ns=row.time_ns))

    def when(self, time_ns: int) -> str:
        """A moment on the operator's clock."""
        return f"{datetime.fromtimestamp(time_ns // _NS, tz=self.zone):%Y-%m-%d %H:%M}"

    def moment(self, words: str, now_ns: int) -> int | None:
        """The last moment before now that a time of day means; ``six`` may be in the morning or in the evening: the later one."""
        text = words.removesuffix(" o clock").removesuffix(" o'clock").strip()
        day = 0
        for word, back in (("yesterday", 1), ("today", 0), ("last night", 0)):
            if text.endswith(word):
                text, day = text.removesuffix(word).strip(), back
        half = next(
            (
                one
                for one in (" pm", " am", " in the evening", " in the afternoon", " in the morning")
                if text.endswith(one)
            ),
            "",
        )
        text = text.removesuffix(half).strip()
        found = re.fullmatch(r"(\d{1,2})(?::(\d{2}))?", text)
        if found is not None:
            hour, minute = int(found[1]), int(found[2] or 0)
        elif text in _NUMBERS:
            hour, minute = _NUMBERS[text], 0
        else:
            return None
        if hour > 23 or minute > 59:
            return None
        sure = found is not None and (found[2] is not None or hour > 12)
        hours = {hour} if sure and not half else {hour % 12, hour % 12 + 12}
        if half:
            hours = {hour % 12} if half in (" am", " in the morning") else {hour % 12 + 12}
        now = datetime.fromtimestamp(now_ns // _NS, tz=self.zone)
        dates = [(now - timedelta(days=back)).date() for back in ((day,) if day else (0, 1))]
        moments = [
            round(datetime.combine(date, time(each, minute), tzinfo=self.zone).timestamp()) * _NS
            for date in dates
            for each in hours
        ]
        past = [one for one in moments if one <= now_ns]
        return max(past) if past else None


EXAMPLES = (
    "why did site 3 not sell at six?",
    "why did home-1 charge at 14:00?",
    "why is the import of home-2 limited?",
    "how is home-1 doing?",
    "what did home-1 cost yesterday?",
    "why is the market halted?",
    "what waits for approval?",
    "what came of the last demand response?",
    "how is the grid?",
    "how good is the forecast of home-1?",
    "what did the agents learn?",
    "what did the agents decide?",
    "prepare demand response for tomorrow's peak",
)


def _ct(ticks: object) -> str:
    return f"{int(str(ticks)) / 100:.2f} ct/kWh"
