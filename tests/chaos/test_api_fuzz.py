"""Scenario 19: schemathesis sends what the OpenAPI document allows and what it does not, as every role."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as properties
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from service.access.schemas import Scope
from service.app import create_app
from service.kit.db import Database
from service.settings import Settings
from tests import worlds
from tests.built import BuiltWorld
from tests.chaos.scenarios import sized
from tests.serving import InThread

EXAMPLES = sized(4, 300)
"""Of each operation, role and mode."""
ROLES = ("none", *Scope)
CONFIG = """
[generation]
# Unknown query parameters are ignored by design: what proxies and browsers append must harm nobody.
allow-extra-parameters = false
[checks.positive_data_acceptance]
# 412 beside schemathesis's own: a revision that is right in form and is not the present one.
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "412", "429", "5xx"]
[checks.negative_data_rejection]
# 413 beside them: what breaks the document by its length may be too large to be read at all.
expected-statuses = [
  "400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx",
]
"""


def left_out(case: Case, reply: schemathesis.Response) -> list[Any]:
    """Checks that a reply is not held to, with the reason."""
    if case.operation.label == "POST /v1/events":
        # Events are judged one by one: a wrong one is named in `rejected`, with 202 for the others (CONTRACT).
        return [negative_data_rejection]
    if case.operation.label == "PUT /v1/items" and reply.status_code == 422:
        # That ids differ is all of the request's shape that a JSON schema cannot say.
        repeated = {error["code"] for error in reply.json()["errors"]} == {"repeated"}
        return [positive_data_acceptance] if repeated else []
    if any(isinstance(value, list | dict) and len(value) <= 1 for value in (case.query or {}).values()):
        # A list of one value, wrong for the document, is sent as that value, and an empty one not at all.
        return [negative_data_rejection]
    return []


@pytest.fixture
def server(settings: Settings, database: Database, built_world: BuiltWorld) -> Iterator[InThread]:
    built_world.copy_into(database, settings.artifacts_dir)
    chosen = settings.model_copy(update={"failure_limit": 0.0, "threads": 1})
    made = InThread(create_app(chosen, clock=lambda: datetime(2026, 3, 1, 12, tzinfo=UTC)))
    made.start()
    # Until the model answers, /health/ready is 503 by design, which is no finding.
    worlds.eventually(lambda: httpx.get(f"{made.url}/health/ready").status_code == 200, 120)
    yield made
    made.stop()


@pytest.mark.scenario(19)
@pytest.mark.timeout(sized(600, 3 * 3600))
def test_no_role_finds_a_reply_that_the_document_does_not_promise(server: InThread, figures: dict[str, Any]) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=schemathesis.Config.from_str(CONFIG))
    access = server.app.state.services.access
    figures |= {"requests": 0, "operations": 0, "statuses": {}}
    failures: list[str] = []
    for role in ROLES:
        headers = {}
        if role != "none":
            key = access.create(role, frozenset({Scope(role)}), actor="cli")
            headers["Authorization"] = f"Bearer {key.token}"
        for result in document.get_all_operations():
            operation = result.ok()
            figures["operations"] += role == "none"
            for mode in GenerationMode:
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                    _run(strategy, headers, figures)
                except Unsatisfiable:  # it takes nothing that could be wrong
                    assert mode is GenerationMode.NEGATIVE, operation.label
                except (Exception, BaseExceptionGroup) as failure:  # all of them are told at the end
                    failures.append(f"{role}, {mode.value}, {operation.label}: {failure}")
    assert not failures, "\n\n".join(failures)


def _run(strategy: Any, headers: dict[str, str], figures: dict[str, Any]) -> None:
    @properties(
        max_examples=EXAMPLES,
        derandomize=sized(True, False),
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *sized([], [Phase.shrink])],
    )
    @given(case=strategy)
    def each(case: Case) -> None:
        reply = case.call(headers=headers)
        figures["requests"] += 1
        figures["statuses"][reply.status_code] = figures["statuses"].get(reply.status_code, 0) + 1
        case.validate_response(reply, headers=headers, excluded_checks=left_out(case, reply))

    each()
