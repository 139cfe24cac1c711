"""Answers to generated requests conform to the OpenAPI."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis", reason='needs pip install "urnet[dev]"')


CHECKS = schemathesis.checks


@pytest.fixture(scope="module")
def api(client):
    async def running(scope, receive, send) -> None:
        """The app, which the client has started already."""
        if scope["type"] != "lifespan":
            return await client.app(scope, receive, send)
        for moment in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{moment}.complete"})

    return schemathesis.openapi.from_asgi("/openapi.json", running, headers={"Host": "localhost"})


@pytest.mark.slow
def test_every_answer_is_described_with_an_example(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/v1/predict", "/v1/differential", "/v1/model", "/healthz", "/readyz"}
    schemas = described["components"]["schemas"]
    assert "example" in schemas["Predictions"]
    assert {"title", "status", "detail", "request_id"} <= set(schemas["Problem"]["properties"])
    refused = described["paths"]["/v1/predict"]["post"]["responses"]["422"]
    assert refused["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    assert "HTTPValidationError" not in str(described)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize(
    "operation",
    ["POST /v1/predict", "POST /v1/differential", "GET /v1/model", "GET /healthz", "GET /readyz"],
)
def test_answers_conform_to_the_openapi(api, operation, mode):
    method, path = operation.split()
    cases = api[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(mode))

    @given(case=cases)
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def holds(case):
        # That a string of bytes is an image is more than a schema can say.
        case.call_and_validate(headers={"Host": "localhost"}, excluded_checks=[CHECKS.positive_data_acceptance])

    try:
        holds()
    except Unsatisfiable:
        assert mode == "negative"  # nothing that could be sent would be wrong
