"""More events than a store that stands still can take: refused with Retry-After, and no memory is spent on them."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import pytest
from sqlalchemy.engine import make_url

from service.kit.db import Database
from tests import worlds
from tests.chaos.ingestion import Served
from tests.chaos.scenarios import sized
from tests.cluster.nursery import Nursery
from tests.proxies import pausable

MIB = 2**20
ANSWER_S = 3.0
CLIENTS = 150  # each connection may have some 200 KiB on their way, read or not


@contextmanager
def standing_still(nursery: Nursery, folder: Path, database: Database) -> Iterator[tuple[Served, Any, Any]]:
    """A service, and what to call for its store to stop and to go on."""
    settings = {"DATABASE_ANSWER_TIMEOUT": str(ANSWER_S), "DATABASE_LOCK_TIMEOUT": str(ANSWER_S)}
    if database.dialect == "postgresql":
        where = make_url(database.url.set(drivername="postgresql"))
        with pausable(where.host or "127.0.0.1", where.port or 5432) as proxy:
            url = where.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
            yield Served(nursery, folder, database, url=url, **settings), proxy.pause, proxy.go_on
        return
    with database.engine.connect() as holder:  # somebody else writes, and does not come to an end
        yield (
            Served(nursery, folder, database, **settings),
            lambda: holder.execution_options(adaptide_writes=True).begin(),
            holder.rollback,
        )


MANY = orjson.dumps(
    {
        "events": [
            worlds.event(f"flood-#-{i}", f"u{i}", worlds.item_id(i), worlds.START, properties={"text": "x" * 1_800})
            for i in range(500)
        ]
    }
)
"""500 events in a little less than a mebibyte."""
assert 0.9 * MIB < len(MANY) < 0.99 * MIB


def batch(number: int) -> bytes:
    return MANY.replace(b"#", b"%d" % number)


@pytest.mark.scenario(14)
@pytest.mark.timeout(sized(300, 3600))
def test_a_flood_on_a_store_that_stands_still_is_refused_and_costs_no_memory(
    nursery: Nursery, tmp_path: Path, database: Database, figures: dict[str, Any]
) -> None:
    with standing_still(nursery, tmp_path, database) as (served, stop, go_on):
        served.start()
        try:
            assert asyncio.run(flood(served, 1, first=0))[202] == 1
            with Memory(served) as memory:
                stop()
                sent = sized(150, 1_000)
                answers = asyncio.run(flood(served, sent, first=1))
                go_on()
            figures |= {"sent": sent, "mebibytes_sent": sent, "answers": dict(answers), "memory_mib": memory.grown_mib}
            assert answers == {503: sent}
            assert memory.grown_mib <= 100
            worlds.eventually(lambda: asyncio.run(flood(served, 1, first=2))[202] == 1, 30)
            for number in (1, 2):  # whatever became of it meanwhile, sending it again counts it once
                assert asyncio.run(flood(served, 1, first=number))[202] == 1
            stored = served.stored()
            assert {f"flood-{number}-{i}" for number in range(3) for i in range(500)} <= stored.keys()
            assert max(stored.values()) == 1
        finally:
            served.kill()


async def flood(served: Served, sent: int, *, first: int) -> Counter[int]:
    """So many batches, CLIENTS of them at the same time; how often each status was the answer.

    Meanwhile the process is asked again and again whether it lives.
    """
    limits = httpx.Limits(max_connections=CLIENTS + 1)
    async with httpx.AsyncClient(base_url=served.address, headers=served.headers, timeout=120, limits=limits) as client:
        turns = asyncio.Semaphore(CLIENTS)

        async def post(number: int) -> httpx.Response:
            async with turns:
                return await client.post("/v1/events", content=batch(number))

        posts = [asyncio.create_task(post(first + n)) for n in range(sent)]
        while not all(post.done() for post in posts):
            assert (await client.get("/health/live")).status_code == 200
            await asyncio.sleep(0.2)
    replies = [post.result() for post in posts]
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies if reply.status_code == 503)
    return Counter(reply.status_code for reply in replies)


class Memory:
    """How far a process's memory grew while the block ran."""

    def __init__(self, served: Served) -> None:
        self._process = psutil.Process(served.pid)
        self._ended = threading.Event()
        self._before = self._most = self._resident()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def grown_mib(self) -> float:
        return round((self._most - self._before) / MIB, 1)

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self._most = max(self._most, self._resident())

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)
