"""Templates: those that come with us, and what is said of a wrong one."""

from importlib import resources

import pytest
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_drivers.template import load_template, schema_text, template_ids

GOOD = """template: 1
id: mine
kind: meter
manufacturer: Me
products: [one]
protocol: modbus
points:
  - {id: active_power_w, function: 4, address: 0, type: f32}
  - {id: frequency_hz, function: 4, address: 2, type: f32}
  - {id: energy_import_wh, function: 4, address: 4, type: f32}
  - {id: energy_export_wh, function: 4, address: 6, type: f32}
sources: [a data sheet]
"""


@pytest.mark.parametrize("name", template_ids())
def test_every_template_is_sound(name):
    template = load_template(name)
    assert template.id == name
    assert template.sources


def test_the_schema_for_editors_is_in_step():
    assert (resources.files("firmware_configs") / "device.schema.json").read_text() == schema_text()


def test_a_file_of_ones_own_loads(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert load_template(str(path)).id == "mine"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("type: f32}\n  - {id: frequency", "type: f99}\n  - {id: frequency", ":8: points[0].type"),
        ("kind: meter", "kind: metre", ":3: kind: input should be 'inverter', 'battery', 'meter'"),
        ("manufacturer: Me", "manufactuer: Me", "did you mean 'manufacturer'"),
        ("address: 0", "address: 70000", "less than or equal to 65535"),
        ("  - {id: frequency_hz, function: 4, address: 2, type: f32}\n", "", "a meter must measure 'frequency_hz'"),
        ("function: 4, address: 2, ", "address: 2, ", "point 'frequency_hz' needs 'function'"),
        ("id: energy_export_wh", "id: energy_import_wh", "'energy_import_wh' stands twice"),
        ("sources: [a data sheet]", "sources: []", ":12: sources"),
    ],
)
def test_a_wrong_file_names_file_line_and_field(tmp_path, old, new, told):
    path = tmp_path / f"wrong{abs(hash((old, new)))}.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigurationError) as caught:
        load_template(str(path))
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_an_unknown_template_names_those_there_are():
    with pytest.raises(ConfigurationError, match="sunspec_battery"):
        load_template("nothing")
