"""Schemas and examples in docs/messages say what the code does."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from wattmesh_a2a import codec, vocabulary
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.messages import MESSAGE_TYPES

FOLDER = Path(__file__).parents[2] / "docs/messages"
BY_NAME = vocabulary.examples()


def test_the_folder_is_in_step_with_the_types():
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert found == vocabulary.documents(), "run: wattmesh messages schemas docs/messages"


@pytest.mark.parametrize("name", sorted(MESSAGE_TYPES))
def test_every_example_fits_its_schema_and_comes_back(name):
    message = vocabulary.example(BY_NAME[name])
    Draft202012Validator(json.loads((FOLDER / "envelope.schema.json").read_text())).validate(message)
    Draft202012Validator(json.loads((FOLDER / f"{name}.schema.json").read_text())).validate(message["data"])
    assert codec.from_fields(codec.decode_fields(codec.encode_fields(message))).data == BY_NAME[name]


@pytest.mark.parametrize("name", sorted(MESSAGE_TYPES))
def test_unknown_fields_are_ignored_and_another_major_version_is_refused(name):
    message = vocabulary.example(BY_NAME[name])
    message["data"]["from_the_future"] = {"x": [1]}
    message["novelattribute"] = "x"
    assert codec.from_fields(message).data == BY_NAME[name]
    message["type"] = name.removesuffix("1") + "2"
    with pytest.raises(InvalidMessageError, match="unknown message type"):
        codec.from_fields(message)


@pytest.mark.parametrize("name", sorted(MESSAGE_TYPES))
def test_a_type_without_a_written_example_gets_one_that_is_valid(name):
    made = vocabulary._made(MESSAGE_TYPES[name], name)
    assert codec.parse_record(codec.record_line(made)) == made
