"""Agents ask each other by A2A and operators ask them in words: who may, until when, and which records an answer rests on."""

import asyncio
import json

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.consult import AgentAdvice, AgentConsult
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, INGEST_AGENT, Address
from wattmesh_a2a.errors import ExpiredError, UnauthorisedError, UnavailableError
from wattmesh_a2a.messages import Refused
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.transports.memory import MemoryBroker, MemoryTransport
from wattmesh_cloud.agents.approvals import ApprovalState
from wattmesh_cloud.agents.cli import agents as agents_command
from wattmesh_cloud.agents.cli import ask as ask_command
from wattmesh_cloud.agents.cli import evaluate
from wattmesh_cloud.agents.config import AgentsConfig
from wattmesh_cloud.agents.contract import Entry
from wattmesh_cloud.agents.looks import Sources
from wattmesh_cloud.agents.memory import Mirror
from wattmesh_cloud.agents.proposals import SetReserve
from wattmesh_cloud.agents.questions import EXAMPLES
from wattmesh_cloud.agents.roster import ROSTER
from wattmesh_cloud.agents.service import AgentsService
from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.forecasting.config import ForecastingConfig
from wattmesh_cloud.forecasting.service import ForecastingService
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.live import LiveView
from wattmesh_cloud.market.service import MarketService
from wattmesh_cloud.store.base import Item, Table
from wattmesh_cloud.tools.base import Caller

SLOT = 900 * NS_PER_S
HOUR = 4 * SLOT
OPERATOR = Caller(id="operator:ann", roles=frozenset({"operator"}))
KEYS = KeyRing({"ann": b"k" * 32})


class World:
    """The five agents over real services, and an A2A messenger that they share, on a broker in memory."""

    def __init__(self, store, clock, config, tmp_path, make_forecast):
        self.store, self.clock, self.forecasts = store, clock, {}
        self.broker = MemoryBroker()
        address = Address("demo", CLOUD_UNIT, INGEST_AGENT)
        serve = [Address("demo", CLOUD_UNIT, name) for name in ROSTER]
        transport = MemoryTransport(self.broker)
        self.delivery = Delivery(transport, address, clock, keys=KEYS, serve=serve)
        common = (store, self.delivery, clock, tmp_path, "demo")
        self.audit = AuditLog(tmp_path / "audit.log")

        async def pay(*what): ...

        self.market = MarketService(config, *common)
        self.grid = GridService(GridConfig(), *common, forecasts=lambda: self.forecasts, pay=pay)
        sources = Sources(
            market_config=config, forecasts=lambda: self.forecasts, market=self.market, grid=self.grid,
            forecasting=ForecastingService(ForecastingConfig(), *common), live=LiveView(),
        )  # fmt: skip
        self.service = AgentsService(AgentsConfig(), sources, *common, audit=self.audit)
        self.service.register()
        self.make_forecast = make_forecast

    def forecast(self, load, sites=("ann", "bob", "cem")):
        now = self.clock.utc_ns()
        self.forecasts = {
            site: {
                "load_wh": self.make_forecast(site, "load_wh", now, load),
                "pv_wh": self.make_forecast(site, "pv_wh", now, [0.0] * len(load)),
            }
            for site in sites
        }

    def consult(self, subject="fleet", **changes):
        values = {
            "conversation": "c-1",
            "question": "What do you see?",
            "deadline_ns": self.clock.utc_ns() + 60 * NS_PER_S,
        }
        return AgentConsult(subject=subject, **{**values, **changes})

    async def close(self):
        await self.service.finish()
        await self.delivery.stop()
        self.service.close()
        self.market.close()
        self.audit.close()


@pytest.fixture
async def world(store, clock, make_config, tmp_path, make_forecast):
    made = World(store, clock, make_config(), tmp_path, make_forecast)
    await made.delivery.start()
    yield made
    await made.close()


# -- agents with agents


async def test_the_market_supervisor_asks_the_other_four_and_each_turn_is_kept(world):
    world.forecast([250.0] * 192)
    topics = [
        ("grid-optimisation", "fleet", "how is the grid?"),
        *[(agent, "ann", "how is it?") for agent in ("forecasting", "producer", "consumer")],
    ]
    answers = await world.service.conversations.round("market-supervisor", topics, "c-1", 30.0)
    assert [one.agent for one in answers] == ["grid-optimisation", "forecasting", "producer", "consumer"]
    assert "0 of 0 gateways" in answers[0].text
    turns = world.service.conversations.turns("c-1")
    assert [turn.what for turn in turns].count("question") == 4
    assert [turn.what for turn in turns].count("answer") == 4
    assert world.service.conversations.replay("c-1") == []


async def test_a_replay_tells_what_would_be_said_otherwise_today(world):
    world.forecast([250.0] * 192)
    await world.service.conversations.ask("market-supervisor", "producer", world.consult("ann"))
    rows = world.service.database.rows("SELECT number, body FROM turns WHERE what = 'answer'")
    body = {**json.loads(rows[0][1]), "text": "another policy's words"}
    world.service.database.write(("UPDATE turns SET body = ? WHERE number = ?", (json.dumps(body), rows[0][0])))
    (difference,) = world.service.conversations.replay("c-1")
    assert "producer now says" in difference


@pytest.mark.parametrize(
    ("asker", "to", "error"),
    [
        ("producer", "market-supervisor", UnauthorisedError),
        ("forecasting", "producer", UnauthorisedError),
        ("mallory", "producer", UnauthorisedError),
    ],
)
async def test_who_may_ask_whom(world, asker, to, error):
    with pytest.raises(error):
        await world.service.conversations.ask(asker, to, world.consult("ann"))


async def test_depth_and_deadline_end_a_chain(world):
    with pytest.raises(UnauthorisedError):
        await world.service.conversations.ask("market-supervisor", "producer", world.consult("ann", depth=3))
    with pytest.raises(ExpiredError):
        await world.service.conversations.ask(
            "market-supervisor", "producer", world.consult("ann", deadline_ns=world.clock.utc_ns())
        )


async def test_a_site_or_a_stranger_gets_no_advice(world):
    gateway = Address("demo", "ann", GATEWAY_AGENT)
    other = Delivery(MemoryTransport(world.broker), gateway, world.clock, keys=KEYS)
    await other.start()
    consult = world.consult("bob")
    answer = await other.request(
        Address("demo", CLOUD_UNIT, "producer"), consult, expires_ns=consult.deadline_ns, timeout_s=5.0
    )
    assert isinstance(answer, Refused)
    await other.stop()


async def test_an_unknown_subject_is_a_refusal_in_the_trace(world):
    answers = await world.service.conversations.round("market-supervisor", [("producer", "zoe", "who?")], "c-2", 30.0)
    assert answers == []
    assert [turn.what for turn in world.service.conversations.turns("c-2")] == ["question", "refusal"]


async def test_a_halt_is_decided_first_and_the_others_are_asked_afterwards(world, background):
    world.forecast([250.0] * 192)
    background(world.service.run())
    await world.clock.advance(4 * 3600)  # nobody issues a new forecast
    assert "market-supervisor" in world.market.engine.halts
    (decision,) = [one for one in world.service.memory.recall("area-1", limit=100) if one["entries"]][-1:]
    for _ in range(200):
        turns = world.service.conversations.turns(decision["id"])
        if sum(turn.what == "answer" for turn in turns) >= 7:
            break
        await asyncio.sleep(0.01)
    assert {turn.speaker for turn in turns if turn.what == "answer"} == set(ROSTER) - {"market-supervisor"}
    world.forecast([250.0] * 192)
    await world.clock.advance(300)
    assert world.market.engine.halted is None, "the ground is gone"


async def test_the_operators_halt_stays(world, background):
    await world.market.halt("maintenance")
    world.forecast([250.0] * 192)
    background(world.service.run())
    await world.clock.advance(600)
    assert world.market.engine.halted is not None


# -- operators


async def test_demand_response_is_prepared_and_waits_and_is_carried_out(world, background):
    """From words to an event: asked, guarded, approved by a person, planned by the grid service."""
    load = [2500.0 if 100 <= slot % 192 < 104 else 250.0 for slot in range(192)]
    world.forecast(load)
    answer = await world.service.ask("Prepare demand response for tomorrow's peak!", OPERATOR)
    assert answer.kind == "prepare"
    assert answer.approval is not None, answer.text
    assert not world.grid.running
    now = world.clock.utc_ns()
    world.service.approvals.approve(answer.approval, "operator:bob", now)
    background(world.service.run())
    await world.clock.advance(300)
    (running,) = world.grid.running.values()
    assert running.event.start_ns == now + 100 * SLOT
    assert running.event.target_w == -round(3 * 10_000 * 0.3)
    assert world.service.approvals.get(answer.approval).state is ApprovalState.DONE


async def test_only_operators_of_all_sites_prepare_anything(world):
    world.forecast([250.0] * 192)
    reader = Caller(id="reader:rea", roles=frozenset({"reader"}))
    answer = await world.service.ask("prepare demand response for tomorrow's peak", reader)
    assert "for operators" in answer.text
    with pytest.raises(UnauthorisedError):
        await world.service.ask("how is the grid?", Caller(id="x", roles=frozenset()))


async def test_without_a_peak_nothing_is_prepared(world):
    world.forecast([0.0] * 192)
    answer = await world.service.ask("plan demand response for tomorrow", OPERATOR)
    assert answer.approval is None
    assert "no peak" in answer.text


@pytest.fixture
def evening(world, midnight_ns):
    """A site that has sold nothing at six in the evening, and everything that was recorded of it."""
    six = midnight_ns + 18 * HOUR
    interval = {"import_wh": 320, "export_wh": 0, "pv_wh": 10, "load_wh": 330, "complete": True}
    rows = {
        Table.CONSUMER_METRICS: Item(partition="ann", time_ns=six, id="interval", data=interval),
        Table.MARKET_DATA: Item(
            partition="area-1#slots", time_ns=six, id="clearing",
            data={"price_ticks": 1450, "volume_wh": 900, "bid_wh": 2000, "offered_wh": 900},
        ),
        Table.TRADE_DATA: Item(
            partition="area-1#trades", time_ns=six, id="t1",
            data={"buyer_id": "cem", "seller_id": "bob", "quantity_wh": 900, "price_ticks": 1450},
        ),
        Table.PRODUCER_METRICS: Item(
            partition="ann#decisions", time_ns=six + 60 * NS_PER_S, id="d1",
            data={"asset_id": "battery-1", "target_w": -500.0, "decided_by": "consumer:plan", "limited_by": None},
        ),
    }  # fmt: skip
    for table, item in rows.items():
        world.store.put(table, [item])
    return six


async def test_why_did_it_not_sell_at_six(world, evening, make_interval):
    for back in range(8, 0, -1):
        world.service.on_record("ann", make_interval("ann", evening - back * SLOT))
    world.clock.set_ns(18 * HOUR - 600 * NS_PER_S)
    await world.service.decide("producer", lambda: world.service.looks.site("ann", "producer"))
    world.clock.set_ns(20 * HOUR)
    answer = await world.service.ask("Why did ann not sell at six?", OPERATOR)
    assert (answer.kind, answer.source) == ("trade", "template")
    for part in (
        "18:00",
        "traded nothing",
        "14.50 ct/kWh",
        "no surplus to sell",
        "no forecast: nothing can be promised",
    ):
        assert part in answer.text, answer.text
    cited = [one.id for one in answer.citations]
    assert f"consumer-metrics/ann/{evening}/interval" in cited
    assert f"market-data/area-1#slots/{evening}/clearing" in cited
    assert any(one.startswith("producer-") for one in cited)
    assert not any("#trades" in one for one in cited), "others' trades are nobody's business"


async def test_what_is_cited_is_there(world, evening):
    world.clock.set_ns(20 * HOUR)
    for question in ("why did bob sell at 18:00?", "why did ann discharge at 18:00", "how is ann doing?"):
        answer = await world.service.ask(question, OPERATOR)
        assert answer.citations, question
        for one in answer.citations:
            table, partition, time_ns, name = one.id.split("/")
            rows = world.store.query(Table(table), partition, int(time_ns), int(time_ns) + 1)
            assert name in [row.id for row in rows], one


async def test_every_example_is_known_and_strangers_are_told(world, evening):
    world.clock.set_ns(20 * HOUR)
    for example in EXAMPLES:
        answer = await world.service.ask(example.replace("home-1", "ann").replace("home-2", "bob"), OPERATOR)
        assert answer.kind != "unknown", example
        assert answer.text, example
    assert (await world.service.ask("what is the meaning of life?", OPERATOR)).kind == "unknown"
    assert "no site" in (await world.service.ask("how is zoe doing?", OPERATOR)).text


async def test_a_caller_with_sites_sees_those_alone(world, evening):
    world.clock.set_ns(20 * HOUR)
    own = Caller(id="reader:ann", roles=frozenset({"reader"}), sites=frozenset({"ann"}))
    assert "metered" in (await world.service.ask("why did ann not sell at six?", own)).text
    for question in ("why did bob not sell at six?", "what waits for approval?", "what did the agents decide?"):
        assert "not yours" in (await world.service.ask(question, own)).text


@pytest.mark.parametrize(
    ("words", "hours"),
    [
        ("six", 18), ("6", 18), ("6 am", 6), ("six in the morning", 6), ("18:00", 18), ("06:30", 6.5), ("noon", 12),
        ("midnight", 12), ("nine", 9), ("yesterday", None), ("25:00", None), ("teatime", None), ("10 pm", -2),
        ("six yesterday", -6), ("19", 19),
    ],
)  # fmt: skip
def test_times_of_day(world, midnight_ns, words, hours):
    moment = world.service.questions.moment(words, midnight_ns + 20 * HOUR)
    assert moment == (None if hours is None else midnight_ns + round(hours * HOUR))


def test_a_number_means_the_only_site_that_ends_with_it(world):
    world.service.questions.sites = ["home-1", "home-11", "home-3"]
    assert world.service.questions.site("3") == "home-3"
    assert world.service.questions.site("1") == "home-1"
    assert world.service.questions.site("home-11") == "home-11"
    assert world.service.questions.site("4") is None


# -- commands


@pytest.fixture
def cloud_file(tmp_path, world):
    path = tmp_path / "cloud.yaml"
    (tmp_path / "keys").mkdir()
    path.write_text(
        "version: 1\norg: demo\nstate: .\nbroker: mqtt://127.0.0.1:1883\nkeys: keys\nmarket:\n  area: area-1\n"
        "  tariff: {feed_in_price: 0.05, default_price: 0.30}\n  participants:\n"
        "    - {id: ann, import_limit_w: 8000, export_limit_w: 4000, credit_limit: 100.0}\n"
    )
    return path


async def test_the_switch_from_the_command_line_is_the_running_clouds(world, cloud_file, capsys):
    assert agents_command(["--cloud", str(cloud_file), "off", "strange answers"]) == 0
    assert not world.service.switch.state().on
    assert agents_command(["--cloud", str(cloud_file), "status"]) == 0
    assert "off, by operator:" in capsys.readouterr().out
    agents_command(["--cloud", str(cloud_file), "on", "fine"])
    assert world.service.switch.state().on


async def test_a_question_from_the_command_line_beside_a_running_cloud(world, evening, cloud_file, capsys, midnight_ns):
    at = str(midnight_ns + 20 * HOUR)
    assert ask_command(["why did ann not sell at six?", "--cloud", str(cloud_file), "--at-ns", at]) == 0
    told = capsys.readouterr().out
    assert "traded nothing" in told
    assert "[consumer-metrics/ann/" in told
    assert ask_command(["what is love?", "--cloud", str(cloud_file), "--json"]) == 1


@pytest.mark.parametrize("which", ["policy", "hostile"])
def test_the_cases_as_a_table(which, capsys):
    assert evaluate(["--reasoner", which]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    passed, _, total, *_ = last.split()
    assert passed == total
    assert int(total) >= 60


class Elsewhere:
    """A memory that may be down."""

    def __init__(self):
        self.kept, self.came, self.up, self.calls = [], [], True, 0

    def _call(self):
        self.calls += 1
        if not self.up:
            raise UnavailableError("AgentCore memory: throttled")

    def remember(self, record):
        self._call()
        self.kept.append((record.id, record.revision, [one.origin for one in record.entries]))

    def outcome(self, decision, came_of_it):
        self._call()
        self.came.append((decision, came_of_it))
        return True


@pytest.fixture
def elsewhere(world):
    remote = Elsewhere()
    world.service.memory._mirror = mirror = Mirror(remote)
    yield remote, mirror
    mirror.close()


async def test_a_memory_elsewhere_gets_every_decision_and_holds_up_nothing(world, elsewhere, caplog):
    remote, mirror = elsewhere
    world.forecast([250.0] * 192)
    ids = []
    for up in (True, False, False, True):
        remote.up = up
        record = await world.service.decide("market-supervisor", world.service.looks.market)
        await asyncio.to_thread(mirror.flush)
        assert world.service.memory.get(record.id) is not None
        ids.append(record.id)
    assert [one[0] for one in remote.kept] == ids, "late, all of them, in order"
    assert [one.message for one in caplog.records] == [
        "decisions are kept here alone: AgentCore memory: throttled",
        "decisions are kept elsewhere again; 0 copies were left out so far",
    ]


async def test_a_memory_elsewhere_gets_what_came_of_it_and_what_operators_ask_for(world, elsewhere):
    remote, mirror = elsewhere
    world.forecast([250.0] * 192)
    record = await world.service.decide("producer", world.service.look_for("producer", "ann"))
    proposal = SetReserve(site_id="ann", reserve_soc_percent=12.0, rationale="an operator's wish")
    asked = await world.service.propose("producer", "ann", proposal, "operator:eva")
    record.entries.append(Entry(proposal={"kind": "set_reserve"}, origin="model", outcome="stopped"))
    record.revision = 1
    assert world.service.memory.outcome(asked.id, {"peak_w": 5})
    assert not world.service.memory.outcome("producer-0-0", {"peak_w": 5})
    await asyncio.to_thread(world.service.memory.remember, record)
    rows = world.service.memory.recall("ann", agent="producer")
    assert world.service.memory.outcome_of(rows, {"import_wh": 7}) == 2
    await asyncio.to_thread(mirror.flush)
    assert [one[:2] for one in remote.kept] == [(record.id, 0), (asked.id, 0), (record.id, 1)]
    assert remote.kept[1][2] == ["operator"]
    assert len(remote.kept[2][2]) == len(remote.kept[0][2]) + 1, "the first copy is as it was then"
    about = {"agent": "producer", "subject": "ann"}
    assert remote.came[0] == (asked.id, {"peak_w": 5, "time_ns": asked.time_ns, **about})
    assert {one[0] for one in remote.came[1:]} == {record.id, asked.id}
    assert remote.came[1][1]["import_wh"] == 7


def test_what_a_memory_elsewhere_does_not_take_is_left_out_in_the_end():
    remote = Elsewhere()
    remote.up = False
    mirror = Mirror(remote, most=2)
    row = {"agent": "producer", "subject": "ann", "time_ns": 1}
    for number in range(3):  # three attempts of the first, which then goes
        mirror.outcome_of([{"id": f"d-{number}", **row}], {})
        mirror.flush()
    assert mirror.left_out == 1
    for number in range(3, 5):  # more wait than it holds: the oldest go
        mirror.outcome_of([{"id": f"d-{number}", **row}], {})
        mirror.flush()
    assert (mirror.left_out, remote.calls) == (3, 5)
    remote.up = True
    mirror.outcome_of([{"id": "d-5", **row}], {})
    mirror.flush()
    assert [one[0] for one in remote.came] == ["d-4", "d-5"]
    mirror.close()
    mirror.outcome_of([{"id": "d-6", **row}], {})
    assert len(remote.came) == 2


def test_advice_is_an_opinion():
    advice = AgentAdvice(conversation="c", agent="producer", subject="ann", text="sell everything", source="model")
    assert not hasattr(advice, "proposals")
