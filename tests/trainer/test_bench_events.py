"""The benchmark of ingestion stores what it says it stores, by every way."""

import json

import numpy as np
import pytest
import sqlalchemy as sa

from service.errors import ConfigurationError
from service.events.tables import events
from service.kit.db import Database
from tests.conftest import POSTGRES_URL
from trainer import bench_events
from trainer.bench_stores import empty_store, servers

STORES = [None, pytest.param(POSTGRES_URL, marks=pytest.mark.postgres)]


@pytest.fixture(params=STORES, ids=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> str | None:
    if request.param is not None:
        request.getfixturevalue("_postgres")  # skips without a server
    url: str | None = request.param
    return url


@pytest.mark.parametrize("way", bench_events.WAYS)
def test_each_way_has_stored_a_batch_when_it_returns(server: str | None, way: str) -> None:
    batch = bench_events.make_batch(np.random.default_rng(0))
    with empty_store(server) as database, bench_events.WAYS[way](database) as send:
        send(batch)
        other = Database(database.url.render_as_string(hide_password=False))
        with other.read() as connection:
            stored = set(connection.scalars(sa.select(events.c.event_id)))
        other.close()
    assert stored == {event["event_id"] for event in batch}


def test_rows_name_store_and_way_and_stand_beside_bulk_and_row_by_row(server: str | None) -> None:
    rows = bench_events.bench_events(server, 2, batches=2, rounds=1, seed=0, over_http=False)

    assert [row.way for row in rows] == ["service", "rows", "bulk"]
    assert {row.store for row in rows} == {"sqlite" if server is None else "postgresql"}
    assert all(row.events_per_s > 0 and row.writers == 2 for row in rows)
    assert [row.of_bulk for row in rows if row.way == "bulk"] == [1.0]
    assert [row.over_rows for row in rows if row.way == "rows"] == [1.0]


def test_a_batch_is_of_the_size_that_the_service_takes_and_within_its_limit_of_bytes() -> None:
    batch = bench_events.make_batch(np.random.default_rng(1))
    assert len({event["event_id"] for event in batch}) == 500
    assert len(json.dumps({"events": batch})) < 2**20


def test_a_server_that_was_named_has_to_answer_one_from_the_environment_may_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    monkeypatch.delenv("ADAPTIDE_TEST_POSTGRES_URL", raising=False)
    assert servers(None) == [None]
    monkeypatch.setenv("ADAPTIDE_TEST_POSTGRES_URL", nowhere)
    assert servers(None) == [None]
    with pytest.raises(ConfigurationError, match="--postgres"):
        servers(nowhere)
