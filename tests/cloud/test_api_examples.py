"""Every JSON answer of the description has an example, which fits its own schema."""

import jsonschema
import pytest
from wattmesh_cloud.api.examples import add_examples

NO_JSON = {"get_job_file", "get_report_file", "get_live", "get_metrics"}
"""Files, a stream, and Prometheus' own format."""
REDIRECTS = {"begin_oidc", "end_oidc"}


def answers(api):
    """(operation, its JSON answer's content) of all that succeed."""
    for methods in api.openapi()["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if status.startswith("2") and "application/json" in answer.get("content", {}):
                    yield operation["operationId"], answer["content"]["application/json"]


def test_every_operation_has_an_example_that_fits_its_schema(api):
    described = api.openapi()
    found = {name for name, _ in answers(api)}
    every = {one["operationId"] for methods in described["paths"].values() for one in methods.values()}
    assert every - found == NO_JSON | REDIRECTS
    wrong = []
    for name, content in answers(api):
        schema = {**content["schema"], "components": described["components"]}
        checker = jsonschema.Draft202012Validator(schema)
        wrong += [
            f"{name}: {error.json_path}: {error.message}" for error in checker.iter_errors(content.get("example"))
        ]
        assert content["example"] not in ([], {}, None), name
    assert wrong == []


def test_a_schema_checker_would_see_a_wrong_example(api):
    content = dict(answers(api))["list_sites"]
    schema = {**content["schema"], "components": api.openapi()["components"]}
    wrong = {"rows": [{**content["example"]["rows"][0], "state": "sleepy"}]}
    with pytest.raises(jsonschema.ValidationError, match="sleepy"):
        jsonschema.validate(wrong, schema)


def test_a_fields_own_example_goes_first_and_a_text_without_one_is_told():
    def described(**field):
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Row"}}}
        operation = {"operationId": "get_row", "responses": {"200": {"content": content}}}
        rows = {"Row": {"type": "object", "properties": field}}
        return {"paths": {"/row": {"get": operation}}, "components": {"schemas": rows}}, content["application/json"]

    whole, content = described(site_id={"type": "string", "examples": ["home-7"]}, load_wh={"type": "integer"})
    add_examples(whole)
    assert content["example"] == {"site_id": "home-7", "load_wh": 250}
    whole, _ = described(colour={"type": "string"})
    with pytest.raises(LookupError, match=r"Row\.colour has no example"):
        add_examples(whole)
