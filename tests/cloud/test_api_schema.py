"""The API against its own description by schemathesis: whatever is asked, no 5xx, and every answer is as described."""

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
LEFT_OUT = {"get_live", "begin_oidc", "end_oidc", "login"}
"""A stream that does not end; redirects to a provider; and the login, whose pace is limited (all are tested by hand)."""


SETTINGS = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_no_5xx_and_no_schema_violation(api, token):
    """Made-up requests, fitting and not, to every operation as an admin of the fleet; schemathesis makes and judges them."""
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", api)
    headers = {"Authorization": f"Bearer {token()}"}
    wrong, asked = [], set()
    for found in schema.get_all_operations():
        operation = found.ok()
        name = operation.definition.raw["operationId"]
        if name in LEFT_OUT:
            continue

        def conforms(case):
            response = case.call(headers=headers)
            if response.status_code == 503:  # no gateway, no simulator here: a typed refusal that says so
                assert response.json()["detail"]
                return
            case.validate_response(response, checks=CHECKS)

        asked.add(name)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                SETTINGS(given(case=operation.as_strategy(generation_mode=mode))(conforms))()
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, f"{name}: nothing that fits its description can be made"
            except (FailureGroup, Failure) as error:
                wrong.append(f"{name}: {error}")
    assert wrong == []
    assert len(asked) > 60, "every operation but those left out"
