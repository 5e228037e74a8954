"""``wattmesh ask``, ``wattmesh eval``, ``wattmesh agents``."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wattmesh_a2a.clock import SystemClock

if TYPE_CHECKING:
    from wattmesh_cloud.agents.evaluation import Case


def ask(argv: list[str]) -> int:
    """``wattmesh ask QUESTION --cloud CLOUD.yaml``: an answer from records, beside a running cloud or without one."""
    parser = argparse.ArgumentParser(prog="wattmesh ask", description="Ask the agents in words.")
    parser.add_argument("question", nargs="?", help="left out: what can be asked")
    parser.add_argument("--cloud", type=Path, default=Path("cloud.yaml"), metavar="CLOUD.yaml")
    parser.add_argument("--at-ns", type=int, help="as if it were this time (UTC nanoseconds); now where left out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    from wattmesh_cloud.agents.questions import EXAMPLES, Questions

    if arguments.question is None:
        print("\n".join(EXAMPLES))
        return 0
    from wattmesh_cloud.agents.approvals import ApprovalQueue
    from wattmesh_cloud.agents.database import Database
    from wattmesh_cloud.agents.learning import Learner
    from wattmesh_cloud.agents.memory import LocalMemory
    from wattmesh_cloud.audit import AuditLog
    from wattmesh_cloud.config import load_cloud
    from wattmesh_cloud.store.sqlite import SqliteStore

    config = load_cloud(arguments.cloud)
    database, store = Database(config.state / "agents.sqlite"), SqliteStore(config.state / "store.sqlite")
    audit = AuditLog(config.state / "audit-agents.log")
    market = config.model.market
    questions = Questions(
        store,
        LocalMemory(database),
        ApprovalQueue(database, audit),
        Learner(database),
        area=market.area,
        zone=market.tariff.tariff(market.time_zone).zone(),
        sites=[one.id for one in market.participants],
    )
    answer = questions.answer(arguments.question, arguments.at_ns or SystemClock().utc_ns())
    if answer.kind == "unknown" and "demand response" in arguments.question:
        answer.text = (
            "Preparing demand response needs the running cloud: ask on its page or by POST /api/v1/agents/ask."
        )
    if arguments.json:
        print(json.dumps(answer.plain(), indent=2))
    else:
        print(answer.text)
        for one in answer.citations:
            print(f"  [{one.id}]")
    audit.close()
    database.close()
    store.close()
    return 0 if answer.kind != "unknown" else 1


def evaluate(argv: list[str]) -> int:
    """``wattmesh eval``: the agents' cases on the policy, on what is hostile, or on a real model, as a table."""
    parser = argparse.ArgumentParser(prog="wattmesh eval", description="Run the agents' evaluation cases.")
    parser.add_argument("--reasoner", choices=("policy", "hostile", "bedrock", "openai", "ollama"), default="policy")
    parser.add_argument("--agent", action="append", help="of this agent only (again for more)")
    parser.add_argument("--model", help="model id, for a model")
    parser.add_argument("--url", help="endpoint, for a model")
    parser.add_argument("--region", help="AWS region, for Bedrock")
    parser.add_argument("--deadline-s", type=float, default=60.0, help="a case, for a model")
    parser.add_argument("--json", action="store_true", help="a line a case")
    arguments = parser.parse_args(argv)
    from wattmesh_cloud.agents.evaluation import judge_hostile, judge_policy, load

    cases = load(arguments.agent)
    rows: list[tuple[str, str, bool, str]] = []
    if arguments.reasoner == "hostile":
        for case in cases:
            for row, guard, outcome, by in judge_hostile(case):
                right = outcome in ("stopped", "waiting") and by == guard
                rows.append((case.agent.name, case.name, right, f"{row['proposal'].get('kind')}: {outcome} by {by}"))
    elif arguments.reasoner == "policy":
        for case in cases:
            judged = judge_policy(case)
            rows.append((case.agent.name, case.name, judged.passed, "; ".join(judged.wrong) or judged.said))
    else:
        rows = asyncio.run(_models(arguments, cases))
    for agent, name, passed, told in rows:
        if arguments.json:
            print(json.dumps({"agent": agent, "case": name, "passed": passed, "detail": told}))
        else:
            print(f"{'pass' if passed else 'FAIL'}  {agent:18} {name:48} {told[:100]}")
    wrong = sum(not row[2] for row in rows)
    if not arguments.json:
        print(f"{len(rows) - wrong} of {len(rows)} passed ({arguments.reasoner})")
    return 1 if wrong else 0


async def _models(arguments: argparse.Namespace, cases: list[Case]) -> list[tuple[str, str, bool, str]]:
    from tempfile import TemporaryDirectory

    from wattmesh_cloud.agents.config import ModelConfig
    from wattmesh_cloud.agents.evaluation import judge_model
    from wattmesh_cloud.agents.models import reasoner
    from wattmesh_cloud.agents.toolbox import Toolbox
    from wattmesh_cloud.audit import AuditLog
    from wattmesh_cloud.store.sqlite import SqliteStore
    from wattmesh_cloud.tools.base import Context

    named = {"id": arguments.model} if arguments.model else {}
    config = ModelConfig(
        provider=arguments.reasoner,
        url=arguments.url,
        region=arguments.region,
        deadline_s=arguments.deadline_s,
        **named,
    )
    rows = []
    with TemporaryDirectory() as folder:
        store, audit = SqliteStore(Path(folder) / "store.sqlite"), AuditLog(Path(folder) / "audit.log")
        model = reasoner(config, Toolbox(Context(store=store, clock=SystemClock(), area="area-1", audit=audit)))
        assert model is not None
        for case in cases:
            judged = await judge_model(case, model, arguments.deadline_s)
            told = "; ".join(judged.wrong) or f"{judged.outcome}: {judged.said}"
            rows.append((case.agent.name, case.name, judged.passed, told))
        await model.close()
        audit.close()
        store.close()
    return rows


def agents(argv: list[str]) -> int:
    """``wattmesh agents status|off|on|approvals|approve|refuse|freeze|thaw|replay --cloud CLOUD.yaml``."""
    parser = argparse.ArgumentParser(prog="wattmesh agents", description="Watch and hold the cloud's agents.")
    parser.add_argument("--cloud", type=Path, default=Path("cloud.yaml"), metavar="CLOUD.yaml")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("status", help="the switch, what was spent, what was learned")
    for name, text in (("off", "turn all models off, at once"), ("on", "let models refine again")):
        actions.add_parser(name, help=text).add_argument("reason")
    actions.add_parser("approvals", help="what waits for a person")
    for name in ("approve", "refuse"):
        one = actions.add_parser(name)
        one.add_argument("id")
        one.add_argument("--note", default="")
    for name, text in (("freeze", "use a parameter's default"), ("thaw", "learn it again")):
        one = actions.add_parser(name, help=text)
        one.add_argument("parameter")
        one.add_argument("--subject", default="*", help="a site, or * for all")
    replay = actions.add_parser("replay", help="make a conversation's answers anew and compare them")
    replay.add_argument("conversation")
    arguments = parser.parse_args(argv)
    from wattmesh_cloud.agents.hand import Hand

    with Hand(arguments.cloud, f"operator:{getpass.getuser()}") as hand:
        for line in hand.do(arguments):
            print(line)
    return 0
