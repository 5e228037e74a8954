"""What agents asked each other, by the API: the turns in their order, and to a tenant what is about its own sites."""

import httpx
import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import UnavailableError
from wattmesh_cloud.agents.roster import ROSTER


@pytest.fixture
async def ask(api, token):
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def send(path, tenant="fleet", **query):
            headers = {"Authorization": f"Bearer {token('viewer', tenant)}"}
            return await client.get(f"/api/v1/agents/{path}", headers=headers, params=query)

        yield send


@pytest.fixture
async def talked(view, messenger, clock, monkeypatch):
    """The market's agent asked about ann and bob; the consumer's gave no answer about ann."""
    talk = view.strategy.conversations

    async def carried(to, message, *, as_agent, **_):
        if to.agent == "consumer":
            raise UnavailableError("the line is busy")
        return await talk.answer(ROSTER[to.agent], message, as_agent.agent)

    monkeypatch.setattr(messenger, "request", carried)
    topics = [
        ("producer", "ann", "how is ann?"),
        ("consumer", "ann", "what does ann need?"),
        ("producer", "bob", "and bob?"),
    ]
    await talk.round("market-supervisor", topics, "market-supervisor-1-1", 30.0)
    await clock.advance(60)
    await talk.round("market-supervisor", [("producer", "bob", "still?")], "market-supervisor-2-2", 30.0)


async def test_conversations_and_their_turns(ask, talked, clock):
    newest, oldest = (await ask("conversations")).json()
    assert (newest["id"], newest["subjects"], newest["turns"]) == ("market-supervisor-2-2", ["bob"], 2)
    assert (oldest["turns"], oldest["refusals"], oldest["subjects"]) == (6, 1, ["ann", "bob"])
    assert oldest["agents"] == ["consumer", "market-supervisor", "producer"]
    assert newest["began_ns"] - oldest["last_ns"] == 60 * NS_PER_S
    turns = (await ask("conversations/market-supervisor-1-1")).json()
    assert [one["number"] for one in turns] == [1, 2, 3, 4, 5, 6]
    asked = next(one for one in turns if one["what"] == "question" and one["subject"] == "bob")
    assert (asked["speaker"], asked["listener"], asked["text"]) == ("market-supervisor", "producer", "and bob?")
    said = next(one for one in turns if one["what"] == "answer" and one["subject"] == "ann")
    assert (said["speaker"], said["source"], said["situation"]["site_id"]) == ("producer", "policy", "ann")
    assert said["text"].startswith("ann is online, state of charge unknown")
    refused = next(one for one in turns if one["what"] == "refusal")
    assert (refused["speaker"], refused["subject"], refused["text"]) == ("consumer", "ann", "the line is busy")
    assert [one["id"] for one in (await ask("conversations", limit=1)).json()] == ["market-supervisor-2-2"]


async def test_a_tenant_reads_the_turns_about_its_own_sites_alone(ask, talked, view):
    listed = await ask("conversations", "acme")
    (row,) = listed.json()
    assert (row["id"], row["turns"], row["subjects"]) == ("market-supervisor-1-1", 4, ["ann"])
    turns = await ask("conversations/market-supervisor-1-1", "acme")
    assert {one["subject"] for one in turns.json()} == {"ann"}
    assert "bob" not in listed.text + turns.text
    other, nobody = await ask("conversations/market-supervisor-2-2", "acme"), await ask("conversations/none", "acme")
    assert (other.status_code, other.text) == (nobody.status_code, nobody.text)
    assert other.status_code == 404
    view.strategy.database.write(("UPDATE turns SET body = json_remove(body, '$.subject')", ()))
    assert (await ask("conversations", "acme")).json() == [], "what does not tell its subject is the operator's alone"
    assert len((await ask("conversations")).json()) == 2
