"""Every field of the site file: a name that is misspelt and a value of the wrong kind are told with file, line and field."""

import re
from pathlib import Path

import pytest
import yaml
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_edge.config import SiteModel, load_site

EXAMPLE = Path(__file__).parents[2] / "firmware_configs" / "sites" / "home-1.yaml"
MORE = """
local: {port: 8080}
flexible:
  - device: boiler
    energy_wh: 6000
    power_w: 2000
    from: "22:00"
    to: "06:00"
charging:
  - device: wallbox
    energy_wh: 12000
    departure: "07:00"
    days: weekday
    phases: 3
    max_current_a: 16
    min_current_a: 6
"""
DEVICES = """
  - id: wallbox
    template: alfen_ng9xx
    connection: {host: 127.0.0.1, port: 15013, unit: 1}
    rated_power_w: 11040
  - id: boiler
    template: alfen_ng9xx_1p
    connection: {host: 127.0.0.1, port: 15014, unit: 1, proxy_port: 15015}
    rated_power_w: 3680
    phase: 1
    ramp_w_per_s: 500
    idle_below_w: 100
agents:"""


def whole():
    """The example with every optional section."""
    text = EXAMPLE.read_text() + MORE
    text = text.replace("\nagents:", DEVICES, 1)
    text = text.replace(
        "rated_power_w: 4000}",
        "rated_power_w: 4000, plane: {latitude_deg: 34, longitude_deg: -118, tilt_deg: 20, azimuth_deg: 180}}",
    )
    text = text.replace("rated_energy_wh: 6400}", "rated_energy_wh: 6400, health_percent: 95, guaranteed_cycles: 6000}")
    text = text.replace("  # phase_limit_w: 5750", "  phase_limit_w: 15750").replace(
        "  # peak_limit_w", "  peak_limit_w"
    )
    return text.replace("  # meter_lag_s", "  meter_lag_s")


def fields(node, path=()):
    """Each key of a document: its path, its own place and its value's: ``(line, column)``, 0-based."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key, value
            yield from fields(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from fields(value, (*path, index))


FIELDS = list(fields(yaml.compose(whole())))


def replaced(text, node, new):
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    begin = starts[node.start_mark.line] + node.start_mark.column
    end = starts[node.end_mark.line] + node.end_mark.column
    return text[:begin] + new + text[end:]


def told(tmp_path, text):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_site(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:"), "names the file"
    return message, int(message.removeprefix(f"{path}:").partition(":")[0])


def test_the_whole_example_is_sound_and_has_every_section(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(whole())
    site = load_site(path)
    assert site.model.charging[0].least_w == 4140
    given = {name for (name, *_), _, _ in FIELDS if isinstance(name, str)}
    named = {field.alias or name for name, field in SiteModel.model_fields.items()}
    assert given == named, "a new section of the file is tried here, too"


@pytest.mark.parametrize("at", range(len(FIELDS)), ids=["-".join(map(str, path)) for path, *_ in FIELDS])
def test_a_misspelt_field_is_told_with_its_line_and_the_nearest_name(tmp_path, at):
    path, key, _ = FIELDS[at]
    wrong = path[-1][:-1] + "x" + path[-1][-1]
    message, line = told(tmp_path, replaced(whole(), key, wrong))
    assert line == key.start_mark.line + 1
    assert re.search(rf"{wrong}.*unknown field", message)
    if len(path[-1]) > 3:
        assert f"did you mean {path[-1]!r}" in message


@pytest.mark.parametrize("at", range(len(FIELDS)), ids=["-".join(map(str, path)) for path, *_ in FIELDS])
def test_a_value_of_the_wrong_kind_is_told_with_its_line_and_field(tmp_path, at):
    path, key, value = FIELDS[at]
    if isinstance(value, yaml.ScalarNode):
        new = "[1, {two: 3}]"
    else:
        new = "7" if value.flow_style else "\n" + " " * (key.start_mark.column + 2) + "7\n"
    message, line = told(tmp_path, replaced(whole(), value, new))
    assert path[-1] in message
    assert line in {key.start_mark.line + 1, key.start_mark.line + 2}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("  - device: boiler\n", "  - device: wallbox\n", "has a need already; one each"),
        ("  - device: wallbox\n", "  - device: car\n", "'car' is none of the devices"),
        (
            "  - device: wallbox\n    energy",
            "  - device: battery\n    energy",
            "sunspec_battery is a battery and no ev_charger",
        ),
        ("    min_current_a: 6\n", "    min_current_a: 20\n", "min_current_a 20 is above max_current_a 16"),
        ("    rated_power_w: 11040\n", "    rated_power_w: 4000\n", "rated_power_w of 4140 at least, which is 6 A"),
        ("    power_w: 2000\n", "    power_w: 9000\n", "9000 is above the device's rated_power_w"),
        ('    departure: "07:00"\n', '    departure: "7 am"\n', "departure"),
    ],
)
def test_a_need_that_cannot_be_met_is_told(tmp_path, old, new, reason):
    assert old in whole()
    message, _ = told(tmp_path, whole().replace(old, new, 1))
    assert reason in message
