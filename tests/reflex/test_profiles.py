"""Response profiles: all that ship are sound, and what could exceed a limit is refused with the reason."""

import importlib.resources
import json

import jsonschema
import pytest
import yaml
from reflex_kernels import profile
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_edge.cli import event as command
from wattmesh_edge.reflex import load_profile
from wattmesh_edge.reflex.prequalify import Bench, prequalify
from wattmesh_edge.reflex.profile import check_profile, profile_ids, schema_text

HOME = {
    "nominal_hz": 60, "power_w": 5000, "rated_power_w": 5000, "rated_energy_wh": 6400, "import_limit_w": 12_000,
    "export_limit_w": 8000,
}  # fmt: skip


def test_the_schema_is_the_models():
    assert (importlib.resources.files("firmware_configs") / "response.schema.json").read_text() == schema_text()


@pytest.mark.parametrize("name", profile_ids())
def test_every_profile_fits_its_schema_and_names_its_source(name):
    text = (importlib.resources.files("firmware_configs") / "responses" / f"{name}.yaml").read_text()
    jsonschema.validate(yaml.safe_load(text), json.loads(schema_text()))
    one = load_profile(name)
    assert one.id == name
    assert all(source for source in one.sources)


@pytest.mark.parametrize("name", [name for name in profile_ids() if load_profile(name).moves])
def test_every_profile_passes_its_own_prequalification(name):
    one = load_profile(name)
    # ERCOT wants all of its power within 15 cycles of the trigger: 100 ms of lag take 0.26 s of the 0.25 (see the next test).
    lag_s = 0.05 if name == "ercot_ffr" else 0.1
    for nominal in one.nominal_hz:
        courses = prequalify(one, Bench(nominal_hz=nominal, power_w=5000.0, battery_lag_s=lag_s))
        assert sum(len(course.checks) for course in courses) >= 4
        failed = [(course.name, check) for course in courses for check in course.checks if not check[3]]
        assert failed == []


def test_prequalification_finds_a_response_that_is_too_slow():
    lame = profile(
        nominal_hz=(50,), continuous={"points": [[-0.5, -1], [0, 0], [0.5, 1]], "ramp_pu_per_s": 0.2},
        required={"starts_s": 0.5, "full_s": 1.0},
    )  # fmt: skip
    courses = prequalify(lame, Bench(nominal_hz=50, power_w=5000.0))
    failed = [check[0] for course in courses for check in course.checks if not check[3]]
    assert "90 % after" in failed


def test_a_battery_that_is_too_slow_for_the_service_is_told():
    def failed(lag_s):
        bench = Bench(nominal_hz=60, power_w=5000.0, battery_lag_s=lag_s)
        courses = prequalify(load_profile("ercot_ffr"), bench)
        return [check[0] for course in courses for check in course.checks if not check[3]]

    assert failed(0.05) == []
    assert failed(0.1) == ["90 % after"]


def test_the_standards_droop():
    """IEEE 1547-2018, 6.5.2.7: P = Ppre + (60 - db - f) / (60 k)."""
    curve = dict(load_profile("ieee1547_2018_cat_iii").continuous.curve(60.0))
    assert curve[-0.036] == 0
    assert curve[-(0.036 + 3.0)] == -1
    vde = dict(load_profile("vde_ar_n_4105").continuous.curve(50.0))
    assert vde[0.2 + 2.5] == 1, "40 % a hertz"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"nominal_hz": 50}, "is for 60 Hz, and the grid has 50 Hz"),
        ({"power_w": 6000}, "could ask for 6000 W, and the battery is rated 5000 W; set power_w to 5000 or less"),
        ({"export_limit_w": 3000}, "5000 W of export, and the connection carries 3000 W; set power_w to 3000"),
        ({"import_limit_w": 4000}, "5000 W of import, and the connection carries 4000 W"),
    ],
)
def test_what_could_exceed_a_limit_is_refused(change, told):
    check_profile(load_profile("ieee1547_2018_cat_iii"), **HOME)
    with pytest.raises(ConfigurationError, match=told):
        check_profile(load_profile("ieee1547_2018_cat_iii"), **{**HOME, **change})


def test_energy_that_is_not_there_is_refused():
    one = load_profile("neso_dynamic_regulation")
    with pytest.raises(
        ConfigurationError, match="needs 10000 Wh kept for 3600 s of 5000 W, and the battery has 6080 Wh"
    ):
        check_profile(one, **{**HOME, "nominal_hz": 50, "reserve_soc_percent": 5})
    check_profile(one, **{**HOME, "nominal_hz": 50, "power_w": 3000, "reserve_soc_percent": 5})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("continuous: {dead_band_hz: 0.1}", "either 'droop' or 'points'"),
        ("continuous: {points: [[0, 0]]}", "two points or more"),
        ("continuous: {points: [[0.1, 0], [0, 1]]}", "growing deviations"),
        ("continuous: {points: [[-0.1, 0], [0.1, -1]]}", "less consumption at a higher frequency"),
        ("continuous: {points: [[-0.1, 0.5], [0.1, 1]]}", "low frequency asks for less consumption"),
        ("continuous: {points: [[-0.1, -2], [0.1, 1]]}", "at most 1"),
        ("blocks: [{trigger_hz: 49.7, power_pu: 1, hold_s: 5, rearm_s: 1}]", "low frequency asks for less"),
        ("trip: [{quantity: over_frequency, threshold: 51.5, clearing_s: 0.2}]", "needs 'enter_service'"),
        ("dropp: 1", "unknown field"),
        ("continuous: {droop: 5}", "less than or equal"),
    ],
)
def test_a_profile_of_ones_own_is_checked_down_to_the_line(tmp_path, text, told):
    path = tmp_path / "own.yaml"
    path.write_text(f"profile: 1\nid: own\ntitle: own\nnominal_hz: [50]\n{text}\nsources: [me]\n")
    with pytest.raises(ConfigurationError, match=told) as caught:
        load_profile(str(path))
    assert str(caught.value).startswith(f"{path}:")


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(ConfigurationError, match="ieee1547_2018_cat_iii"):
        load_profile("nonsense")


def test_prequalify_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "page.html"
    assert command(["prequalify", "nordic_ffr_c", "--out", str(out)]) == 0
    assert "5 of 5 checks passed" in capsys.readouterr().out
    page = out.read_text()
    assert page.count("<svg") == 4
    assert "FAILED" not in page
    with pytest.raises(ConfigurationError, match="moves nothing"):
        command(["prequalify", "watch_only"])
    with pytest.raises(ConfigurationError, match="not for 60 Hz"):
        command(["prequalify", "nordic_ffr_c", "--nominal-hz", "60"])
