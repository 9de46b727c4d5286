"""A user is erased while other processes write about the user: nothing of what was is there afterwards."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.events.tables import event_ids, events
from service.kit.clock import utc_now
from service.kit.db import Database
from service.recommend.tables import recommendations
from service.users.service import erase_user
from tests.chaos.scenarios import sized
from tests.worlds import eventually

WRITERS = 2
# Writes without end events of the past and recommendations made now, for eight users; says what became of each.
WRITER = """
import json, sys
from datetime import UTC, datetime, timedelta
from service.errors import StoreUnavailable
from service.events.service import ingest
from service.kit.clock import utc_now
from service.kit.db import Database
from service.kit.ids import uuid7
from service.recommend.record import recommendation_writer

database, writer, number = Database(sys.argv[1]), sys.argv[2], 0
recorder = recommendation_writer(database)
recorder.start()
began = datetime.now(UTC) - timedelta(days=1)
while True:
    number += 1
    sent = [
        {"event_id": f"{writer}-{number}-{n}", "user_id": f"u{n}", "item_id": "i", "event_type": "view",
         "occurred_at": (began + timedelta(seconds=number)).isoformat()}
        for n in range(8)
    ]
    rows = [
        {"recommendation_id": uuid7(), "user_id": f"u{n}", "created_at": datetime.now(UTC), "strategy": "popular",
         "fallback_reason": None, "base_id": None, "adapter_version": None, "catalog_revision": 0, "history": ["i"],
         "items": []}
        for n in range(8)
    ]
    recording = [recorder.ask(row) for row in rows]
    try:
        done = ingest(database, sent, clock=utc_now, clock_tolerance=timedelta(minutes=5))
        print(json.dumps([done.accepted, [r.code for r in done.rejected]]), flush=True)
        for future in recording:
            future.result(30)
    except StoreUnavailable as error:  # an erasure waits for its second; clients send again
        print(json.dumps([0, [error.detail]]), flush=True)
"""


@contextmanager
def writing(url: str, folder: Path) -> Iterator[list[Path]]:
    """Processes that write, each until it is killed; what they say."""
    said = [folder / f"writer-{n}" for n in range(WRITERS)]
    started = []
    for number, path in enumerate(said):
        with path.open("w") as file:
            started.append(subprocess.Popen([sys.executable, "-c", WRITER, url, f"w{number}"], stdout=file))
    try:
        yield said
    finally:
        ended = [process.poll() for process in started]
        for process in started:
            process.kill()
            process.wait()
    assert ended == [None] * WRITERS


def held(database: Database, user: str) -> tuple[int, int]:
    with database.read() as connection:
        return tuple(  # type: ignore[return-value]  # two
            connection.scalar(sa.select(sa.func.count()).select_from(table).where(table.c.user_id == user)) or 0
            for table in (events, recommendations)
        )


@pytest.mark.timeout(300)
def test_what_other_processes_write_meanwhile_does_not_outlive_an_erasure(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    users = [f"u{turn}" for turn in range(sized(4, 8))]
    with writing(database_url, tmp_path) as paths:
        for user in users:
            eventually(lambda user=user: min(held(database, user)) >= 5, 60)  # type: ignore[misc]  # bound for B023
            assert erase_user(database, user, clock=utc_now, actor="tests").events >= 5
            assert held(database, user) == (0, 0)
        time.sleep(sized(1, 10))  # they go on
    assert [held(database, user) for user in users] == [(0, 0)] * len(users)
    with database.read() as connection:
        kept = connection.scalar(sa.select(sa.func.count()).select_from(events)) or 0
        assert connection.scalar(sa.select(sa.func.count()).select_from(event_ids)) == kept
    said = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert [8, []] in said
    assert [8 - len(users), ["erased_user"] * len(users)] in said
