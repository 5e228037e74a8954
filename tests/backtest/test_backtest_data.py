"""Data of a backtest: what is read, and one clear error for what is not."""

import math

import pytest
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_backtest.data import load_period

HEAD = "slot_start_utc,load_wh,pv_wh\n"


def test_the_built_in_year_is_whole():
    period = load_period("citylearn_2022", days=3)
    assert (period.slots, period.gaps, len(period.sites)) == (288, 0, 5)
    assert all(sum(one.load_wh) > 0 for one in period.sites if one.id != "home-3")


def test_a_folder_is_cut_to_what_all_sites_have(folder, sunny, battery):
    folder.site("a", sunny(2), **battery).site("b", sunny(1))
    period = load_period(str(folder.path))
    assert period.slots == 96
    assert [one.battery_wh for one in period.sites] == [5000, 0]


def test_hours_are_spread_over_their_quarters(folder):
    folder.sites["a"] = {}
    folder.write("a", HEAD + "2026-06-01T00:00:00Z,400,100\n2026-06-01T01:00:00Z,800,0\n")
    period = load_period(str(folder.path))
    assert period.sites[0].load_wh[:5] == (100, 100, 100, 100, 200)
    assert period.sites[0].pv_wh[0] == 25


def test_a_gap_is_told_and_not_filled(folder, sunny):
    rows = sunny(1)
    rows[10] = ("", 5)
    folder.site("a", rows).site("b", sunny(1))
    period = load_period(str(folder.path))
    assert (period.gaps, period.played[10]) == (1, False)
    assert math.isnan(period.sites[0].load_wh[10])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("when,load,pv\n", "line 1 has to be"),
        (HEAD + "2026-06-01T00:00:00Z,1\n", "line 2: 2 columns"),
        (HEAD + "2026-06-01T00:00:00Z,x,1\n", "line 2: could not convert"),
        (HEAD + "2026-06-01T00:00:00Z,-1,1\n", "line 2: load_wh is -1"),
        (HEAD + "2026-06-01T00:00:00Z,1,1e12\n", "line 2: pv_wh is 1e"),
        (HEAD + "2026-06-01T00:00:00+02:00,1,1\n", "is not UTC"),
        (HEAD + "2026-06-01T00:00:00,1,1\n", "is not UTC"),
        (HEAD + "yesterday,1,1\n", "line 2: Invalid isoformat"),
        (HEAD + "2026-06-01T00:15:00Z,1,1\n2026-06-01T00:00:00Z,1,1\n", "line 3: the times have to rise"),
        (HEAD + "2026-06-01T00:00:00Z,1,1\n", "at least two rows"),
        (HEAD + "2026-06-01T00:00:00Z,1,1\n2026-06-01T00:10:00Z,1,1\n", "a quarter, half or whole hour apart"),
        (HEAD + "2026-06-01T00:05:00Z,1,1\n2026-06-01T00:20:00Z,1,1\n", "begin with one"),
        ("", "line 1 has to be"),
    ],
    ids=[
        "header",
        "columns",
        "number",
        "negative",
        "huge",
        "zone",
        "naive",
        "time",
        "order",
        "one",
        "step",
        "place",
        "empty",
    ],
)
def test_bad_files_name_file_and_line(folder, text, said):
    folder.sites["a"] = {}
    folder.write("a", text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_period(str(folder.path))
    assert "a.csv" in str(caught.value)


def test_what_is_missing_is_named(folder, sunny, tmp_path):
    with pytest.raises(ConfigurationError, match="no such folder"):
        load_period(str(tmp_path / "nowhere"))
    folder.site("a", sunny(1))
    folder.sites["b"] = {}
    folder.save()
    with pytest.raises(ConfigurationError, match=r"b\.csv: there is no such file"):
        load_period(str(folder.path))
    with pytest.raises(ConfigurationError, match="the part that was asked for is not in it"):
        load_period("citylearn_2022", days=400)


def test_a_mistake_in_the_yaml_names_its_field(folder, sunny):
    folder.site("a", sunny(1), battery={"energy_wh": -1, "power_w": 1})
    with pytest.raises(ConfigurationError, match="energy_wh"):
        load_period(str(folder.path))
