"""The hardware lab's door: what it takes, what it refuses, and that every fault ends."""

import asyncio
import json

import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_simulators.fleet import Fleet, FleetModel
from wattmesh_simulators.lab import SCENARIOS, Lab

SECRET = "a secret of the lab"


@pytest.fixture
async def fleet():
    home = {"id": "home-1", "home": "b01", "inverter": {"port": 0}, "battery": {"port": 0}, "meter": {"port": 0}}
    made = Fleet(FleetModel.model_validate({"sites": [home]}), ManualClock(1_662_051_600 * 10**9), None)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def later():
    return []


@pytest.fixture
def lab(fleet, later, tmp_path):
    (tmp_path / "lab.secret").write_text(SECRET + "\n")
    return Lab(fleet, tmp_path / "lab.secret", lambda seconds, work: later.append((seconds, work)))


def ask(lab, **question):
    return lab.answer(json.dumps(question).encode())


def faults_of(answer, device):
    return next(one["faults"] for one in answer["devices"] if one["device"] == device)


FAULT = {"do": "fault", "site": "home-1", "device": "meter", "name": "silent", "value": "1", "for_s": 5}


def test_a_fault_begins_and_ends_by_itself(lab, later, fleet):
    assert faults_of(ask(lab, **FAULT), "meter") == {"silent": True}
    assert fleet.servers["home-1", "meter"].faults.silent
    ((seconds, over),) = later
    assert seconds == 5
    over()
    assert faults_of(ask(lab, do="state"), "meter") == {}


def test_a_later_order_of_the_same_fault_has_its_own_end(lab, later):
    ask(lab, **FAULT)
    ask(lab, **FAULT)
    later[0][1]()
    assert faults_of(ask(lab, do="state"), "meter") == {"silent": True}
    later[1][1]()
    assert faults_of(ask(lab, do="state"), "meter") == {}


def test_all_can_be_ended_at_once(lab):
    ask(lab, **FAULT)
    ask(lab, **{**FAULT, "device": "battery", "name": "delay_s", "value": "0.5"})
    answer = ask(lab, do="clear")
    assert all(one["faults"] == {} for one in answer["devices"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"do": "explode"}, "does not match any of the expected tags"),
        ({"site": "home-9"}, "no simulated Modbus device"),
        ({"device": "toaster"}, "Input should be 'inverter'"),
        ({"name": "melted"}, "there is no fault 'melted'"),
        ({"name": "delay_s", "value": "soon"}, "is no number"),
        ({"for_s": 0}, "greater than 0"),
        ({"for_s": 1e9}, "less than or equal to 3600"),
        ({"more": 1}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_happens(lab, later, change, text):
    answer = ask(lab, **{**FAULT, **change})
    assert text in answer["error"]
    assert later == []


@pytest.mark.parametrize("line", [b"", b"[]", b"not json", b'{"do": "disturb", "power_w": NaN, "hold_s": 1}', b"\xff"])
def test_lines_that_are_none(lab, line):
    assert "error" in lab.answer(line)


def test_disturbances_wait_for_the_next_step_and_not_without_end(lab):
    for _ in range(16):
        assert "error" not in ask(lab, do="disturb", power_w=-1000, hold_s=1)
    assert "let some pass" in ask(lab, do="disturb", power_w=-1000, hold_s=1)["error"]


def test_every_scenario_can_be_started(lab):
    for one in SCENARIOS.values():
        wanted = (
            {"do": "fault", "site": "home-1", **one["fault"]} if "fault" in one else {"do": "disturb", **one["disturb"]}
        )
        assert "error" not in ask(lab, **wanted)


async def test_by_the_socket_with_the_secret_alone(lab):
    await lab.start(0)
    try:
        for secret, wanted in ((SECRET, "devices"), ("wrong", "error")):
            reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
            writer.write(f'{secret}\n{{"do": "state"}}\n'.encode())
            assert wanted in json.loads(await reader.readline())
            writer.close()
    finally:
        await lab.stop()


@pytest.mark.parametrize("content", ["", "short", None])
def test_a_lab_without_a_secret_is_refused(fleet, tmp_path, content):
    if content is not None:
        (tmp_path / "s").write_text(content)
    with pytest.raises(ConfigurationError):
        Lab(fleet, tmp_path / "s")
