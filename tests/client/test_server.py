"""The clients against a real server, and the batcher through its restarts."""

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from service.access.schemas import Scope
from service.app import create_app
from service.client import (
    NEVER,
    AsyncClient,
    Client,
    Event,
    EventBatcher,
    Full,
    Item,
    RecommendationRequest,
    Retries,
    errors,
)
from service.events.tables import events
from service.kit.db import Database
from service.settings import Settings
from tests.conftest import SetClock
from tests.serving import InThread

AT = datetime(2026, 2, 1, tzinfo=UTC)


def event(number: int, user: str = "u") -> Event:
    return Event(event_id=f"e{number}", user_id=user, item_id="a", event_type="click", occurred_at=AT)


class Place(httpx.HTTPTransport):
    """Leads to whichever server runs now, as a name does; to none while there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.url: str | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.url is None:
            raise httpx.ConnectError("no server")
        request.url = httpx.URL(self.url).join(request.url.raw_path.decode())
        return super().handle_request(request)


@pytest.fixture
def token(app: FastAPI) -> str:
    return str(app.state.services.access.create("tests", frozenset({Scope.ADMIN}), actor="cli").token)


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    server = InThread(app)
    server.start()
    yield server.url
    server.stop()


def count(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(events)) or 0


def test_a_shop_puts_items_sends_events_and_asks(url: str, token: str) -> None:
    with Client(url, token) as client:
        assert client.put_items([Item(item_id="a/b c", title="Tea", categories=["Drinks"])]).created == 1
        assert client.get_item("a/b c").categories == ["Drinks"]
        sent = [
            Event(user_id="u", item_id="a/b c", event_type="click", occurred_at=AT, value=2.5, properties={"x": [1]})
        ]
        assert client.send_events(sent).accepted == 1
        assert client.send_events(sent).duplicates == 1
        assert client.send_events([event(1)], validate_only=True).accepted == 1
        (stored,) = client.read_events("u").events
        assert (stored.event_id, stored.occurred_at, stored.properties) == (sent[0].event_id, AT, {"x": [1]})
        reply = client.recommend(RecommendationRequest(history=["a/b c"], include_seen=True, limit=3))
        assert reply.strategy == "popular"
        assert client.recommend_for("nobody", limit=1).fallback_reason is not None
        assert [line["kind"] for line in client.export_user("u")][-1] == "end"
        assert client.erase_user("u").events == 1
        client.delete_item("a/b c")
        with pytest.raises(errors.NotFound):
            client.get_item("a/b c")
        assert client.ready().status
        assert "# HELP" in client.metrics()


def test_an_operator_reads_and_moves(url: str, token: str) -> None:
    with Client(url, token) as client:
        assert client.list_adapters().adapters == []
        assert client.list_replicas().replicas
        with pytest.raises(errors.NotFound):
            client.promote("a000001-0123456789ab")
        with pytest.raises(errors.Conflict):
            client.close_window()
        client.send_events([event(1)])
        assert client.close_window().events == 1
        assert client.list_windows().windows[0].sealed_because == "manual"
        assert client.read_audit(limit=1).entries
    with Client(url, "ak_wrong") as stranger, pytest.raises(errors.Unauthenticated) as caught:
        stranger.read_audit()
    assert caught.value.request_id


def test_asyncio_speaks_to_the_same_server(url: str, token: str) -> None:
    async def talk() -> tuple[int, int]:
        async with AsyncClient(url, token) as client:
            reports = await asyncio.gather(*(client.send_events([event(n)]) for n in range(5)))
            lines = [line async for line in client.export_user("u")]
            return sum(report.accepted for report in reports), sum(line["kind"] == "event" for line in lines)

    assert asyncio.run(talk()) == (5, 5)


def test_nothing_that_was_taken_is_lost_through_a_restart(
    settings: Settings, database: Database, clock: SetClock
) -> None:
    place = Place()
    app = create_app(settings, clock=clock)
    token = app.state.services.access.create("tests", frozenset({Scope.WRITE}), actor="cli").token
    client = Client("http://shop", token, transport=place, retries=Retries(attempts=1))
    batcher = EventBatcher(client, linger=0.01)
    for number in range(700):  # while there is no server yet
        batcher.add(event(number))
    assert not batcher.flush(0.05)
    first = InThread(app)
    first.start()
    place.url = first.url
    assert batcher.flush(60)
    place.url = None
    first.stop()
    for number in range(600, 900):  # some of them again
        batcher.add(event(number))
    second = InThread(create_app(settings, clock=clock))
    second.start()
    place.url = second.url
    assert batcher.close(60) == []
    client.close()
    second.stop()
    assert count(database) == 900


def test_a_rejected_event_is_handed_back_and_the_others_are_stored(url: str, token: str, database: Database) -> None:
    rejected: list[tuple[str, str]] = []

    def note(refused: Event, code: str, _: str) -> None:
        rejected.append((refused.event_id, code))

    with Client(url, token) as client, EventBatcher(client, on_rejected=note) as batcher:
        batcher.add(event(1))
        batcher.add(Event(event_id="e1", user_id="other", item_id="a", event_type="click", occurred_at=AT))
        batcher.add(event(2))
    assert rejected == [("e1", "event_id_conflict")]
    assert count(database) == 2


@pytest.mark.parametrize(
    "properties", [{"x": "\ud800"}, {"x": object()}, {"x": float("nan")}], ids=["surrogate", "object", "nan"]
)
def test_an_event_that_cannot_be_sent_is_refused_to_whoever_adds_it(
    url: str, token: str, database: Database, properties: dict[str, object]
) -> None:
    with Client(url, token) as client, EventBatcher(client) as batcher:
        with pytest.raises(ValueError):  # noqa: PT011  # json words it, and not the same everywhere
            batcher.add(Event(user_id="u", item_id="a", event_type="click", occurred_at=AT, properties=properties))
        assert batcher.add(event(1))
    assert count(database) == 1


def test_an_event_that_was_changed_after_it_was_taken_is_rejected_alone(
    url: str, token: str, database: Database
) -> None:
    rejected: list[tuple[str, str]] = []
    note = lambda refused, code, detail: rejected.append((refused.event_id, code))  # noqa: E731
    with Client(url, token) as client, EventBatcher(client, linger=60, on_rejected=note) as batcher:
        properties = {"x": "y"}
        batcher.add(event(1))
        batcher.add(
            Event(event_id="e2", user_id="u", item_id="a", event_type="click", occurred_at=AT, properties=properties)
        )
        batcher.add(event(3))
        properties["x"] = "\ud800"
        assert batcher.flush(60)
        batcher.add(event(4))
    assert rejected == [("e2", "invalid_event")]
    assert count(database) == 3


@pytest.mark.parametrize("failure", [httpx.DecodingError("bad gzip"), httpx.RequestError("odd"), RuntimeError("odd")])
def test_the_batcher_outlives_failures_of_any_kind(
    url: str, token: str, database: Database, failure: Exception
) -> None:
    class Once(httpx.HTTPTransport):
        failed = False

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if not self.failed:
                self.failed = True
                raise failure
            return super().handle_request(request)

    with Client(url, token, transport=Once(), retries=NEVER) as client, EventBatcher(client, linger=0.01) as batcher:
        batcher.add(event(1))
        assert batcher.flush(60)
        batcher.add(event(2))
    assert count(database) == 2


def test_a_reply_that_cannot_be_read_is_an_error_of_the_client() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/export"):
            return httpx.Response(200, text='{"kind": "user"}\n{"kind": "ev')
        return httpx.Response(200, stream=httpx.ByteStream(b"no gzip"), headers={"Content-Encoding": "gzip"})

    with Client("http://shop", transport=httpx.MockTransport(answer), retries=NEVER) as client:
        with pytest.raises(errors.UnexpectedReply, match="DecodingError"):
            client.get_item("a")
        with pytest.raises(errors.UnexpectedReply, match="did not answer with JSON"):
            list(client.export_user("u"))


def away() -> Client:
    return Client("http://127.0.0.1:9", transport=Place(), retries=Retries(attempts=1))


def test_a_full_buffer_waits_or_drops_and_what_is_left_is_given_back() -> None:
    waiting = EventBatcher(away(), batch=2, capacity=2)
    assert waiting.add(event(1))
    assert waiting.add(event(2))
    with pytest.raises(Full, match="is the server away"):
        waiting.add(event(3), timeout=0.01)
    assert waiting.pending == 2
    assert [left.event_id for left in waiting.close(0.01)] == ["e1", "e2"]
    with pytest.raises(RuntimeError, match="closed"):
        waiting.add(event(4))
    dropping = EventBatcher(away(), batch=1, capacity=1, when_full="drop")
    assert (dropping.add(event(1)), dropping.add(event(2)), dropping.dropped) == (True, False, 1)
    dropping.close(0.01)


def test_the_end_of_a_with_says_how_many_events_it_drops(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(EventBatcher.close, "__defaults__", (0.01,))  # half a minute
    with EventBatcher(away()) as batcher:
        batcher.add(event(1))
        batcher.add(event(2))
    assert "2 events could not be sent and are dropped" in caplog.text


def test_many_threads_may_add(url: str, token: str, database: Database) -> None:
    with Client(url, token) as client, EventBatcher(client, linger=0.01, batch=50, capacity=100) as batcher:
        threads = [
            threading.Thread(target=lambda t=t: [batcher.add(event(t * 1000 + n)) for n in range(200)])
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert count(database) == 800


def test_long_events_go_in_several_requests(url: str, token: str, database: Database) -> None:
    with Client(url, token) as client, EventBatcher(client) as batcher:
        for number in range(400):
            batcher.add(
                Event(
                    event_id=f"e{number}",
                    user_id="u",
                    item_id="a",
                    event_type="click",
                    occurred_at=AT,
                    properties={"x": "y" * 4_000},
                )
            )
    assert count(database) == 400
