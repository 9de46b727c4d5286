"""Recommendations stored together: committed before their futures have a result, and one failure is one's own."""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from service.errors import StoreUnavailable
from service.kit.db import Database
from service.kit.grouped import Grouped
from service.kit.ids import least_uuid7, uuid7
from service.recommend import repository
from service.recommend.record import AGAIN_S, Recorded, recommendation_writer
from service.recommend.tables import recommendations
from tests import worlds


@pytest.fixture
def writer(database: Database) -> Iterator[Grouped[Mapping[str, Any], None]]:
    made = recommendation_writer(database)
    yield made
    made.stop()


def row(**changes: Any) -> dict[str, Any]:
    return {
        "recommendation_id": uuid7(),
        "user_id": "u",
        "created_at": worlds.START,
        "strategy": "personalised",
        "fallback_reason": None,
        "base_id": "b",
        "adapter_version": None,
        "catalog_revision": 1,
        "history": ["a"],
        "items": [["b", -1.0]],
    } | changes


def stored(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.scalars(sa.select(recommendations.c.recommendation_id)))


def test_a_group_is_stored_when_its_futures_have_results(
    database: Database, writer: Grouped[Mapping[str, Any], None]
) -> None:
    rows = [row() for _ in range(5)]
    futures = [writer.ask(one) for one in rows]
    assert stored(database) == set()
    writer.start()
    for one, future in zip(rows, futures, strict=True):
        assert future.result(10) is None
        assert one["recommendation_id"] in stored(database)  # seen by another connection: committed


def test_a_row_that_the_store_refuses_fails_alone(database: Database, writer: Grouped[Mapping[str, Any], None]) -> None:
    first, last = row(), row()
    futures = [writer.ask(one) for one in (first, row(strategy=None), last)]
    writer.start()
    assert futures[0].result(10) is futures[2].result(10) is None
    with pytest.raises(sa.exc.IntegrityError):
        futures[1].result(10)
    assert stored(database) == {first["recommendation_id"], last["recommendation_id"]}


def test_after_one_that_was_waited_for_in_vain_one_in_a_while_is_until_one_is_in_time() -> None:
    now = 0.0

    async def waited(wait: Recorded, *, done: bool) -> bool:
        """Whether it was waited for, of which it is cancelled when it does not come."""
        record: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if done:
            record.set_result(None)
        try:
            await wait.wait(record)
        except TimeoutError:
            assert record.cancelled()
            return True
        assert not record.cancelled()
        return done

    async def run() -> None:
        nonlocal now
        wait = Recorded(0.01, lambda: now)
        assert await waited(wait, done=False)
        assert not await waited(wait, done=False)  # the next ones are left to come when they can
        now += AGAIN_S
        assert await asyncio.gather(*(waited(wait, done=False) for _ in range(3))) == [True, False, False]
        now += 2 * AGAIN_S
        assert await waited(wait, done=True)
        assert await waited(wait, done=False)  # all is well again, so this one is waited for

    asyncio.run(run())


def test_what_nobody_waits_for_may_fail() -> None:
    async def run() -> None:
        wait = Recorded(0.01, lambda: 0.0)
        with pytest.raises(TimeoutError):
            await wait.wait(asyncio.get_running_loop().create_future())
        later: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await wait.wait(later)
        later.set_exception(StoreUnavailable("away"))
        await asyncio.sleep(0)

    asyncio.run(run())


def test_pages_by_time_lose_nobody_between_them(database: Database) -> None:
    """An id is of the moment in which the request came, created_at of the moment in which it was answered."""
    midnight = worlds.START
    straddling = row(
        recommendation_id=least_uuid7(midnight - timedelta(milliseconds=200)),
        created_at=midnight + timedelta(milliseconds=100),
    )
    with database.write() as connection:
        repository.insert(connection, [straddling])
        before = repository.page_after(connection, "", 10, None, midnight)
        after = repository.page_after(connection, "", 10, midnight, None)
    assert (len(before), len(after)) == (0, 1)
