"""Commands in one step, with a typed word, with another person's approval; once by key; never twice after a crash."""

import json

import httpx
import pytest
from pydantic import BaseModel
from wattmesh_a2a.errors import UnavailableError
from wattmesh_cloud.access import passwords
from wattmesh_cloud.access.commands import Commands, Kind
from wattmesh_cloud.access.model import Permission, Role


class Nothing(BaseModel):
    """No arguments."""


@pytest.fixture
async def ask(api, token):
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def send(path, body=None, role="operator", tenant="fleet"):
            headers = {"Authorization": f"Bearer {token(role, tenant)}"}
            if body is None:
                return await client.get(f"/api/v1/{path}", headers=headers)
            return await client.post(f"/api/v1/{path}", json=body, headers=headers)

        yield send


def wanted(kind, key="aaaaaaaa", **arguments):
    return {"kind": kind, "arguments": arguments, "reason": "a test", "idempotency_key": key}


async def test_one_step(ask, view):
    made = (await ask("commands", wanted("market.halt"))).json()
    assert (made["state"], made["confirm"]) == ("done", None)
    assert view.market.engine.halted


async def test_two_steps(ask, view):
    await ask("commands", wanted("market.halt"))
    made = (await ask("commands", wanted("market.resume", "bbbbbbbb"))).json()
    assert (made["state"], made["confirm"], view.market.engine.halted is not None) == ("waiting", "RESUME", True)
    wrong = await ask(f"commands/{made['id']}/confirm", {"confirm": "resume"})
    assert (wrong.status_code, wrong.json()["detail"]) == (422, "type RESUME to go on")
    other = await ask(f"commands/{made['id']}/confirm", {"confirm": "RESUME"}, role="admin")
    assert other.status_code == 403, "whoever asked has to confirm"
    done = await ask(f"commands/{made['id']}/confirm", {"confirm": "RESUME"})
    assert (done.json()["state"], view.market.engine.halted) == ("done", None)
    again = await ask(f"commands/{made['id']}/confirm", {"confirm": "RESUME"})
    assert again.status_code == 409


async def test_a_second_step_that_comes_too_late(ask, view, real):
    made = (await ask("commands", wanted("market.resume"))).json()
    await real.advance(121)
    late = await ask(f"commands/{made['id']}/confirm", {"confirm": "RESUME"})
    assert late.status_code == 409
    assert (await ask(f"commands/{made['id']}")).json()["state"] == "expired"


async def test_the_same_key_is_the_same_command_and_another_one_is_a_conflict(ask, view):
    first = (await ask("commands", wanted("market.halt"))).json()
    view.market.engine.resume()
    assert (await ask("commands", wanted("market.halt"))).json() == first
    assert view.market.engine.halted is None, "it is not done again"
    assert (await ask("commands", wanted("market.resume"))).status_code == 409


async def test_rights_and_arguments(ask):
    assert (await ask("commands", wanted("market.halt"), role="viewer")).status_code == 403
    assert (await ask("commands", wanted("no.such"))).status_code == 422
    wrong = await ask("commands", wanted("market.suspend"))
    assert (wrong.status_code, wrong.json()["detail"]) == (422, "arguments.participant: Field required")
    unknown = (await ask("commands", wanted("market.suspend", "cccccccc", participant="eve"))).json()
    assert unknown["state"] == "refused"
    kinds = {one["kind"] for one in (await ask("commands/kinds", role="viewer")).json()}
    assert kinds == set()


async def test_a_tenant_sees_its_own_commands_alone(ask):
    made = (await ask("commands", wanted("market.halt"))).json()
    assert (await ask("commands", role="admin", tenant="acme")).json()["rows"] == []
    assert (await ask(f"commands/{made['id']}", role="admin", tenant="acme")).status_code == 404


async def test_approval_is_another_persons(services, access, api):
    done = []

    async def run(who, *_):
        done.append(who.name)
        return "it is done"

    kind = Kind(
        name="test.it", title="Test", permission=Permission.OPERATE, arguments=Nothing, run=run, steps="approve"
    )
    services.commands.add(kind)
    people = {}
    for name in ("ann", "bob"):
        access.store.add_user(
            name, tenant="fleet", role=Role.OPERATOR, password_hash=passwords.hashed("correct horse battery")
        )
        _, people[name] = access.store.open_session(name, kind="user", tenant="fleet", role=Role.OPERATOR)
    made = await services.commands.ask(people["ann"], "test.it", {}, "a test", "aaaaaaaa")
    with pytest.raises(Exception, match="somebody else has to approve"):
        await services.commands.confirm(people["ann"], made.id, "IT")
    assert done == []
    after = await services.commands.confirm(people["bob"], made.id, "IT")
    assert (after.state, after.decided_by, done) == ("done", "user:bob", ["bob"])


async def test_an_emergency_needs_a_second_person(ask, view):
    body = wanted("grid.emergency", mode="shortage", stage=1)
    made = (await ask("commands", body)).json()
    assert (made["state"], made["steps"], made["confirm"]) == ("waiting", "approve", "EMERGENCY")
    assert view.grid.emergency.standing == {}
    alone = await ask(f"commands/{made['id']}/confirm", {"confirm": "EMERGENCY"})
    assert (alone.status_code, alone.json()["detail"]) == (403, "somebody else has to approve what you asked for")
    weak = await ask(f"commands/{made['id']}/confirm", {"confirm": "EMERGENCY"}, role="viewer")
    assert weak.status_code == 403
    assert view.grid.emergency.standing == {}
    done = (await ask(f"commands/{made['id']}/confirm", {"confirm": "EMERGENCY"}, role="admin")).json()
    assert (done["state"], done["asked_by"], done["decided_by"]) == (
        "done",
        "token:fleet-operator",
        "token:fleet-admin",
    )
    (standing,) = view.grid.emergency.standing.values()
    assert (standing.stage, standing.drill, standing.reason) == (1, False, "a test")
    assert (standing.by, standing.confirmed_by) == ("token:fleet-operator", "token:fleet-admin")
    assert done["result"] == f"{standing.id}: stage 1 (shortage) is in force"


async def test_an_emergency_that_is_refused_late_or_wrong_does_nothing(ask, view, real):
    refused = (await ask("commands", wanted("grid.emergency", mode="shortage", stage=1))).json()
    assert (await ask(f"commands/{refused['id']}/reject", {}, role="admin")).json()["state"] == "refused"
    late = (await ask("commands", wanted("grid.emergency", "bbbbbbbb", mode="surplus", stage=2))).json()
    await real.advance(899)
    assert (await ask(f"commands/{late['id']}")).json()["state"] == "waiting"
    await real.advance(2)
    answer = await ask(f"commands/{late['id']}/confirm", {"confirm": "EMERGENCY"}, role="admin")
    assert (answer.status_code, view.grid.emergency.standing) == (409, {})
    for arguments, text in (
        ({"stage": 9}, "arguments.stage: there is no stage 9"),
        ({"area": "mars"}, "arguments.area: there is no area"),
    ):
        wrong = await ask(
            "commands", wanted("grid.emergency", "cccccccc", **{"mode": "shortage", "stage": 1, **arguments})
        )
        assert wrong.status_code == 422
        assert text in wrong.json()["detail"]
    other = await ask("commands", wanted("grid.emergency", mode="shortage", stage=1), role="admin", tenant="acme")
    assert other.status_code == 403


async def test_what_was_under_way_at_a_crash_is_told_and_never_done_again(services, access, tmp_path, clock, real):
    async def run(who, *_):
        raise UnavailableError("the disk is full")

    kind = Kind(name="test.it", title="Test", permission=Permission.OPERATE, arguments=Nothing, run=run)
    services.commands.add(kind)
    _, who = access.store.open_session("ann", kind="demo", tenant="fleet", role=Role.ADMIN)
    failed = await services.commands.ask(who, "test.it", {}, "a test", "aaaaaaaa")
    assert (failed.state, failed.result) == ("failed", "the disk is full")
    services.commands._db.execute("UPDATE commands SET state='running'")
    again = Commands(tmp_path / "commands.sqlite", access.audit, clock, real)
    (row,), _ = again.list(who, 10)
    assert (row.state, "look whether it took effect" in row.result) == ("failed", True)
    again.close()


async def test_arguments_and_reason_stand_in_the_audit_log(ask, services):
    await ask("commands", wanted("market.suspend", participant="ann"))
    entries = [json.loads(line) for line in services.audit.read_text().splitlines()]
    (asked,) = [one for one in entries if one["action"] == "command.market.suspend" and one["outcome"] == "asked"]
    assert asked["detail"]["arguments"] == '{"participant": "ann"}'
    assert asked["detail"]["reason"] == "a test"
