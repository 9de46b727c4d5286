"""Which calls are made again, when, and what is raised in the end."""

import asyncio
from datetime import datetime

import httpx
import pytest

from service import errors as server
from service.client import AsyncClient, Client, ConnectionFailed, Event, Retries, UnexpectedReply, errors
from service.client.encoding import decode, encode
from service.client.models import ModelInfo, RecommendationReply

QUICK = Retries(first_s=0.0)
ITEM = {"created": 1, "updated": 0, "unchanged": 0, "catalog_revision": 1}


def problem(status: int, slug: str, **headers: str) -> httpx.Response:
    body = {
        "slug": slug,
        "detail": "why",
        "request_id": "r-1",
        "errors": [{"pointer": "/a", "code": "c", "detail": "d"}],
    }
    return httpx.Response(status, json=body, headers=headers)


class Script:
    """Answers one after the other; an exception is raised."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, retries: Retries = QUICK) -> Client:
        return Client("http://server", "key", retries=retries, transport=httpx.MockTransport(self))


@pytest.mark.parametrize(
    "first",
    [
        problem(503, "store_unavailable"),
        problem(429, "too_many_requests"),
        httpx.Response(502),
        httpx.ConnectError("x"),
    ],
)
def test_what_may_be_repeated_is(first: httpx.Response | Exception) -> None:
    script = Script(first, httpx.Response(200, json=ITEM))
    assert script.client().put_items([]).created == 1
    assert len(script.requests) == 2
    assert script.requests[0].headers["Authorization"] == "Bearer key"


def test_after_the_last_attempt_the_error_is_raised_by_its_slug() -> None:
    script = Script(*[problem(503, "store_unavailable", **{"Retry-After": "0"})] * 4)
    with pytest.raises(errors.StoreUnavailable) as caught:
        script.client().get_item("i")
    assert (caught.value.status, caught.value.request_id, caught.value.retry_after) == (503, "r-1", 0.0)
    assert caught.value.errors == [{"pointer": "/a", "code": "c", "detail": "d"}]
    assert len(script.requests) == 4


@pytest.mark.parametrize(("status", "slug"), [(404, "not_found"), (422, "invalid_request"), (401, "unauthenticated")])
def test_a_refusal_is_not_repeated(status: int, slug: str) -> None:
    script = Script(problem(status, slug))
    with pytest.raises(errors.BY_SLUG[slug]):
        script.client().get_item("i")


def test_closing_a_window_is_tried_once() -> None:
    script = Script(httpx.ReadTimeout("late"))
    with pytest.raises(ConnectionFailed, match="ReadTimeout"):
        script.client().close_window()
    assert len(script.requests) == 1


def test_every_attempt_of_a_promotion_has_the_same_key() -> None:
    moved = {"from_version": None, "to_version": "a", "revision": 2, "audit_id": "x"}
    script = Script(httpx.ReadError("gone"), httpx.Response(200, json=moved))
    assert script.client().promote("a", revision=1).revision == 2
    first, second = (request.headers for request in script.requests)
    assert first["Idempotency-Key"] == second["Idempotency-Key"]
    assert first["If-Match"] == '"1"'


def test_an_item_that_a_lost_attempt_deleted_counts_as_deleted() -> None:
    Script(httpx.ReadError("gone"), problem(404, "not_found")).client().delete_item("i")
    with pytest.raises(errors.NotFound):
        Script(problem(404, "not_found")).client().delete_item("i")


def test_pauses_double_are_drawn_at_random_and_add_to_what_the_server_asks() -> None:
    patient = Retries(attempts=9, first_s=1.0, longest_s=4.0)
    assert [patient.pause(attempt, None, 0.5) for attempt in (1, 2, 3, 4, 8)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert patient.pause(1, 7.0, 0.5) == 7.5
    assert patient.pause(9, None) is None
    assert patient.pause(1, 3_600.0) is None


def test_a_reply_that_is_not_the_apis_is_said() -> None:
    with pytest.raises(UnexpectedReply, match="did not answer with JSON"):
        Script(httpx.Response(200, text="<html>")).client().get_item("i")
    with pytest.raises(errors.ApiError, match="status_418") as caught:
        Script(httpx.Response(418, text="tea")).client().get_item("i")
    assert caught.value.detail == "tea"
    with pytest.raises(UnexpectedReply, match="the reply is no PutReport"):
        Script(httpx.Response(200, json={})).client().put_items([])


def test_an_export_without_its_last_line_is_cut_off() -> None:
    lines = '{"kind": "user"}\n{"kind": "event"}\n'
    with pytest.raises(UnexpectedReply, match="cut off"):
        list(Script(httpx.Response(200, text=lines)).client().export_user("u"))
    with pytest.raises(errors.Forbidden):
        list(Script(problem(403, "forbidden")).client().export_user("u"))


def test_a_process_that_is_not_ready_says_why() -> None:
    report = {"status": "unavailable", "parts": {"store": {"ready": False, "state": "away", "detail": None}}}
    assert Script(httpx.Response(503, json=report)).client().ready().parts["store"].state == "away"


def test_asyncio_has_the_same_retries() -> None:
    script = Script(problem(503, "unavailable"), httpx.Response(200, json=ITEM))

    async def put() -> int:
        async with AsyncClient("http://server", retries=QUICK, transport=httpx.MockTransport(script)) as client:
            return (await client.put_items([])).created

    assert asyncio.run(put()) == 1


def test_every_slug_of_the_api_has_its_exception() -> None:
    def below(kind: type[server.AdaptideError]) -> list[type[server.AdaptideError]]:
        return [kind, *(deeper for one in kind.__subclasses__() for deeper in below(one))]

    own = {"dataset_unusable", "dataset_cut_off", "catalogue"}  # of commands
    slugs = {kind.slug for kind in below(server.AdaptideError) if kind.status < 500 or kind.status == 503} - own
    assert slugs <= errors.BY_SLUG.keys()


def test_only_what_differs_from_a_default_is_sent() -> None:
    event = Event(user_id="u", item_id="i", event_type="click")
    assert encode(event).keys() == {"event_id", "occurred_at", "user_id", "item_id", "event_type"}
    with pytest.raises(ValueError, match="has no time zone"):
        encode(Event(user_id="u", item_id="i", event_type="click", occurred_at=datetime(2026, 1, 1)))


def test_what_a_newer_server_adds_is_left_out() -> None:
    reply = {"recommendation_id": "r", "items": [], "strategy": "new", "model": {"base": "b", "adapter_version": None}}
    found = decode(RecommendationReply, {**reply, "model": {**reply["model"], "trained_through": None}, "more": 1})  # type: ignore[dict-item]
    assert found.strategy == "new"
    assert found.model == ModelInfo(adapter_version=None, base="b", trained_through=None)
