"""So many requests that write, and so many bytes of them, at once; the rest is told when to come again."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.errors import Unavailable
from service.http.intake import Intake
from service.telemetry import REGISTRY


def intake(**changes: Any) -> Intake:
    chosen: dict[str, Any] = {"most_requests": 3, "most_bytes": 100, "workers": 1}
    return Intake(**(chosen | {"patience": timedelta(seconds=0.05)} | changes))


def in_use() -> tuple[float | None, float | None]:
    return REGISTRY.get_sample_value("adaptide_intake_requests"), REGISTRY.get_sample_value("adaptide_intake_bytes")


def refusals(reason: str) -> float:
    return REGISTRY.get_sample_value("adaptide_intake_refused_requests_total", {"reason": reason}) or 0.0


def test_no_more_requests_than_are_allowed_and_each_gives_its_place_back() -> None:
    made, before = intake(), refusals("requests")
    with made.place() as one, made.place() as two, made.place() as three:
        for place in (one, two, three):
            place.add(1)
            place.is_whole()
        assert in_use() == (3, 3)
        with made.place() as four:
            four.add(1)  # whose body is still coming
            with pytest.raises(Unavailable) as caught:
                four.is_whole()
            assert caught.value.retry_after
    assert in_use() == (0, 0)
    with made.place() as again:
        again.is_whole()
    assert refusals("requests") == before + 1


def test_bytes_count_as_they_come_so_that_who_sends_slowly_takes_little_room() -> None:
    made, before = intake(), refusals("bytes")
    slow = [made.place() for _ in range(20)]
    for place in slow:
        place.__enter__().add(1)
    assert in_use() == (0, 20)
    with made.place() as quick:
        quick.add(60)
        quick.add(20)
        with pytest.raises(Unavailable):
            quick.add(1)
    assert in_use() == (0, 20)
    for place in slow:
        place.__exit__(None, None, None)
    assert in_use() == (0, 0)
    assert refusals("bytes") == before + 1


def test_a_place_is_given_back_when_the_work_fails() -> None:
    made = intake()
    place = made.place()
    held = place.__enter__()
    held.add(7)
    held.is_whole()
    place.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert in_use() == (0, 0)


def test_who_finds_no_free_worker_in_time_is_refused_and_the_worker_goes_on() -> None:
    async def run() -> str:
        made, go_on = intake(), threading.Event()

        def slow() -> str:
            go_on.wait(30)
            return "done"

        first = asyncio.create_task(made.work(slow))
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="slower"):
            await made.work(lambda: "never")
        go_on.set()
        assert await first == "done"
        return await made.work(lambda: "next")

    assert asyncio.run(run()) == "next"


@pytest.mark.parametrize(("path", "verb"), [("/v1/events", "POST"), ("/v1/items", "PUT")])
def test_whoever_has_no_key_takes_no_place(app: FastAPI, client: TestClient, path: str, verb: str) -> None:
    with app.state.services.intake.place() as full:
        full.add(8 * 2**20)
        assert client.request(verb, path, content=b"x" * 1_000).status_code == 401


@pytest.mark.parametrize(("path", "verb"), [("/v1/events", "POST"), ("/v1/items", "PUT")])
def test_a_request_beyond_the_intake_gets_503_and_when_to_come_again(
    app: FastAPI, admin: TestClient, path: str, verb: str
) -> None:
    intake = app.state.services.intake
    body = {"content": b'{"events": [1], "items": []}', "headers": {"Content-Type": "application/json"}}
    with intake.place() as full:
        full.add(8 * 2**20)
        reply = admin.request(verb, path, **body)  # type: ignore[arg-type]
    assert (reply.status_code, reply.json()["slug"]) == (503, "unavailable")
    assert 1 <= int(reply.headers["Retry-After"]) <= 3
    assert admin.request(verb, path, **body).status_code == 422  # type: ignore[arg-type]  # it was read
