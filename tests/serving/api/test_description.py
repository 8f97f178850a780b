"""The service against its own OpenAPI description: calls that Schemathesis makes from it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sigma_jax.serving.api.app import create_app
from sigma_jax.serving.api.keys import Keys

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
DESCRIPTION = create_app({}, None, Keys({}, "shop")).openapi()
# These change what the tests of this file share; test_wrong_calls.py calls them.
LEFT_OUT = ("/v1/catalogue/items", "/v1/catalogue/items/{item_id}", "/v1/drain")
OPERATIONS = [
    (path, method, mode)
    for path, methods in DESCRIPTION["paths"].items()
    for method, operation in methods.items()
    for mode in GenerationMode
    if path not in LEFT_OUT
    # A call without a parameter or a described body cannot be wrong.
    and (
        mode == GenerationMode.POSITIVE
        or "parameters" in operation
        or operation.get("requestBody", {}).get("content")
    )
]
EXAMPLES = 8  # of an operation and a mode


@pytest.fixture(scope="module")
def schema():
    return schemathesis.openapi.from_dict(DESCRIPTION)


@pytest.mark.parametrize("path, method, mode", OPERATIONS)
def test_calls_from_the_description(schema, shared_port, path, method, mode):
    operation = schema[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def call(case):
        case.call_and_validate(base_url=f"http://127.0.0.1:{shared_port}", checks=CHECKS)

    call()
