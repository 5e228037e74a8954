"""The compliance notes and the AWS guide point at what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_PATH = re.compile(r"`((?:[a-z0-9_.-]+/)+[A-Za-z0-9_.-]+)`")


@pytest.mark.parametrize("page", ["compliance.md", "aws.md"])
def test_what_a_page_names_is_there(page):
    text = (ROOT / "docs" / page).read_text()
    named = {one for one in _PATH.findall(text) if not one.startswith(("aws/", "a2a/v1"))}
    assert len(named) >= 8
    assert sorted(one for one in named if not (ROOT / one).exists()) == []
    short = {one for one in _PATH.findall(text) if one.startswith("aws/")}
    assert sorted(one for one in short if not (ROOT / "cloud" / "wattmesh_cloud" / one).exists()) == []


def test_every_requirement_that_is_met_names_code_or_a_test():
    rows = [line for line in (ROOT / "docs" / "compliance.md").read_text().splitlines() if line.startswith("| FR ")]
    assert len(rows) >= 8
    assert [row for row in rows if "`" not in row] == []
