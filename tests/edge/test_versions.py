"""A change from afar is whole, newer, within the owner's limits, and leaves by itself where the site gets worse."""

import logging
from pathlib import Path

import pytest
import yaml
from wattmesh_a2a.errors import ConfigurationError, ConflictError
from wattmesh_edge.versions import Health, Trial, Versions

EXAMPLE = Path(__file__).parents[2] / "firmware_configs" / "sites" / "home-1.yaml"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "home-1.yaml"
    path.write_text(EXAMPLE.read_text())
    return path


def changed(**fields):
    model = yaml.safe_load(EXAMPLE.read_text())
    for name, value in fields.items():
        model[name] = value
    return yaml.safe_dump(model)


@pytest.fixture
def versions(file, tmp_path):
    return Versions(file, tmp_path / "config")


GENTLE = {"control": {"period_s": 1.0, "reserve_soc_percent": 30}}


def test_a_change_is_tried_as_a_whole_and_stays_when_it_works(versions, file, tmp_path):
    versions.propose(3, changed(**GENTLE))
    assert versions.current == 0
    assert versions.load().model.control.reserve_soc_percent == 30
    assert versions.load is not None
    versions.accept()
    assert (versions.current, versions.trial) == (3, 0)
    again = Versions(file, tmp_path / "config")
    assert again.load().model.control.reserve_soc_percent == 30
    assert again.load().state == (tmp_path / "state" / "home-1").resolve(), "paths stay relative to the owner's file"
    assert again.history() == [(3, "on trial"), (3, "good")]


def test_a_process_that_dies_in_a_trial_goes_back_by_itself(versions, file, tmp_path):
    versions.propose(1, changed(**GENTLE))
    assert versions.load().model.control.reserve_soc_percent == 30
    # killed here, and started again
    again = Versions(file, tmp_path / "config")
    assert again.load().model.control.reserve_soc_percent == 5
    assert again.trial == 0
    assert "taken back" in again.history()[-1][1]
    with pytest.raises(ConflictError, match="not newer"):
        again.propose(1, changed(**GENTLE))


def test_a_process_that_is_ended_in_order_tries_again(versions, file, tmp_path):
    versions.propose(1, changed(**GENTLE))
    versions.load()
    versions.pause()
    assert Versions(file, tmp_path / "config").load().model.control.reserve_soc_percent == 30


def test_the_owners_file_wins_when_it_changes(versions, file, tmp_path, caplog):
    versions.propose(1, changed(**GENTLE))
    versions.load()
    versions.accept()
    file.write_text(EXAMPLE.read_text() + "\n# changed by hand\n")
    with caplog.at_level(logging.WARNING):
        again = Versions(file, tmp_path / "config")
    assert again.load().model.control.reserve_soc_percent == 5
    assert "has changed: it counts" in caplog.text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"connection": {"import_limit_w": 50_000, "export_limit_w": 8000}}, "above the owner's 12000"),
        ({"connection": {"import_limit_w": 12_000, "export_limit_w": 9000}}, "above the owner's 8000"),
        ({"site": "home-2"}, "site: only the owner's file"),
        ({"state": "/elsewhere"}, "state: only the owner's file"),
        (
            {"messaging": {"broker": "mqtt://127.0.0.1:9999", "signing_key": "keys/home-1.key"}},
            "messaging: only the owner's",
        ),
        ({"controll": {"period_s": 1.0}}, "version 7:.*unknown field; did you mean 'control'"),
        ({"control": {"period_s": -1}}, "version 7:[0-9]+: control.period_s"),
    ],
)
def test_what_may_not_be_changed_is_refused_with_the_reason(versions, fields, reason):
    with pytest.raises(ConfigurationError, match=reason):
        versions.propose(7, changed(**fields))
    assert versions.trial == versions.newest == 0
    assert versions.load().model.control.reserve_soc_percent == 5


def test_devices_are_the_owners(versions):
    model = yaml.safe_load(EXAMPLE.read_text())
    model["devices"][1]["rated_power_w"] = 6000
    with pytest.raises(ConfigurationError, match="rated_power_w: at most the owner's 5000"):
        versions.propose(1, yaml.safe_dump(model))
    model = yaml.safe_load(EXAMPLE.read_text())
    model["devices"][1]["connection"]["host"] = "192.0.2.1"
    with pytest.raises(ConfigurationError, match="only the owner's file may add a device or say where"):
        versions.propose(2, yaml.safe_dump(model))


@pytest.mark.parametrize("text", ["", "{", "- 1", "x" * 70_000, "site: [", "\x00"])
def test_nonsense_is_refused(versions, text):
    with pytest.raises(ConfigurationError):
        versions.propose(1, text)


def test_one_change_at_a_time_and_never_an_older_one(versions):
    versions.propose(5, changed(**GENTLE))
    with pytest.raises(ConflictError, match="on trial"):
        versions.propose(6, changed(**GENTLE))
    versions.roll_back("test")
    with pytest.raises(ConflictError, match="not newer than 5"):
        versions.propose(4, changed(**GENTLE))


def test_a_torn_state_of_versions_is_the_owners_file(file, tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "versions.json").write_text("{tor")
    assert Versions(file, tmp_path / "config").load().model.control.reserve_soc_percent == 5


WELL = Health(answering=frozenset({"battery", "meter"}), healthy=True, agent_failures=0)


def judged(before, course):
    trial = Trial(before, cycles=10, bad_cycles=3)
    return next((verdict for health in course if (verdict := trial.judge(health)) is not None), None)


def test_a_trial_ends_well_after_its_time_and_badly_after_a_few_bad_cycles():
    lost = Health(answering=frozenset({"meter"}), healthy=True, agent_failures=0)
    ill = Health(answering=WELL.answering, healthy=False, agent_failures=0)
    assert judged(WELL, [WELL] * 10) == "good"
    assert judged(WELL, [WELL] * 9) is None
    assert judged(WELL, [ill, ill, *[WELL] * 10]) == "good", "the first cycles after a start may be odd"
    assert judged(WELL, [lost] * 3) == "battery answered before"
    assert judged(WELL, [WELL, ill, WELL, ill, ill]) == "setpoints do not arrive"
    assert (
        judged(Health(answering=frozenset({"meter"}), healthy=False, agent_failures=0), [lost, ill] * 10) == "good"
    ), "no worse"
    assert judged(None, [Health(answering=frozenset(), healthy=True, agent_failures=5)] * 3) == "an agent fails"


def test_a_change_that_is_told_again_is_the_one_on_trial(versions, file, tmp_path):
    versions.propose(2, changed(**GENTLE))
    again = Versions(file, tmp_path / "config")  # killed between taking it and saying so
    again.propose(2, changed(**GENTLE))
    assert (again.trial, len(again.history())) == (2, 1)
    with pytest.raises(ConflictError, match="not newer"):
        again.propose(2, changed(control={"period_s": 1.0, "reserve_soc_percent": 31}))
