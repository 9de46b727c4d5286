"""The catalogue of an earlier revision is what a process held that followed it then."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from service.catalog import repository, service
from service.catalog.follower import CatalogueFollower
from service.catalog.index import CatalogueIndex
from service.catalog.past import index_at
from service.catalog.schemas import Item
from service.catalog.tables import item_history
from service.errors import CatalogueError
from service.kit.db import Database
from service.tables import metadata
from tests.conftest import SetClock

FAR = datetime(2100, 1, 1, tzinfo=UTC)


def item(name: str, **changes: Any) -> Item:
    return Item(item_id=name, **{"title": name.upper(), "categories": ["lamp"], **changes})


def serve(database: Database, base_id: str) -> None:
    with database.write() as connection:
        bases, pointer = metadata.tables["bases"], metadata.tables["active_adapter"]
        at = datetime(2026, 1, 1, tzinfo=UTC)
        connection.execute(bases.insert().values(base_id=base_id, digest=base_id, created_at=at, metrics={}))
        connection.execute(pointer.update().values(base_id=base_id))


def encode(database: Database, base_id: str, names: list[str], level: int) -> None:
    with database.write() as connection:
        revision = repository.next_revision(connection)
        codes = {name: (level, place % 5, place // 5, 0) for place, name in enumerate(sorted(names))}
        repository.set_codes(connection, base_id, codes, revision=revision)


def same(one: CatalogueIndex, other: CatalogueIndex) -> bool:
    """But for `deleted`, which no ranking asks: what is deleted is not available."""
    one, other = (
        replace(index, items=[replace(item, deleted=False) for item in index.items]) for index in (one, other)
    )
    return (list(one.items), one.revision, one.base_id) == (list(other.items), other.revision, other.base_id)


@pytest.mark.parametrize("seed", range(3))
def test_every_revision_comes_back_as_it_was_followed(database: Database, clock: SetClock, seed: int) -> None:
    choose = random.Random(seed)
    follower = CatalogueFollower(database, timedelta(seconds=1))
    names = [f"i{place:02d}" for place in range(12)]
    held: dict[int, CatalogueIndex] = {}
    serve(database, "b-1")
    for step in range(30):
        clock.advance(seconds=1)
        if step == 20:
            serve(database, "b-2")
        base_id = "b-1" if step < 20 else "b-2"
        some = choose.sample(names, 4)
        match choose.randrange(4):
            case 0:
                service.put_items(database, clock, [item(name) for name in some])
            case 1:
                changes = {"available": choose.random() < 0.5, "categories": [choose.choice(["lamp", "chair"])]}
                service.put_items(database, clock, [item(name, **changes) for name in some])
            case 2:
                with database.read() as connection:
                    known = [one for one in repository.by_ids(connection, some).values() if one.deleted_at is None]
                if known:
                    service.delete_item(database, clock, known[0].item_id)
            case _:
                with database.read() as connection:
                    there = list(repository.known(connection, some))
                encode(database, base_id, there, step)
        index = follower.refresh()
        held[index.revision] = index

    with database.read() as connection:
        for revision, index in held.items():
            assert same(index_at(connection, revision, index.base_id), index)


def test_items_that_only_come_in_leave_no_history(database: Database, clock: SetClock) -> None:
    for size in (3, 1_200):  # rows one by one, and copied on PostgreSQL
        service.put_items(database, clock, [item(f"{size}-{place}") for place in range(size)])
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(item_history)) == 0


def test_many_items_that_are_replaced_at_once_are_kept(database: Database, clock: SetClock) -> None:
    service.put_items(database, clock, [item(f"i{place}") for place in range(1_200)])
    service.put_items(database, clock, [item(f"i{place}", title="new") for place in range(1_300)])
    with database.read() as connection:
        assert {one.title for one in index_at(connection, 1, None).items} == {f"I{place}" for place in range(1_200)}
        assert len(index_at(connection, 2, None).items) == 1_300


def test_what_was_forgotten_or_never_was_is_refused(database: Database, clock: SetClock) -> None:
    for title in ("one", "two", "three"):
        service.put_items(database, clock, [item("a", title=title)])
    with database.write() as connection:
        repository.lock_revision(connection)
        assert repository.forget_history(connection, FAR, 1) == 1
    with database.read() as connection:
        assert [one.title for one in index_at(connection, 2, None).items] == ["two"]
        assert [one.title for one in index_at(connection, 3, None).items] == ["three"]
        with pytest.raises(CatalogueError, match="no longer kept; 2 is the oldest"):
            index_at(connection, 1, None)
        with pytest.raises(CatalogueError, match="is not in this store, which is at 3"):
            index_at(connection, 4, None)
    with database.write() as connection:
        repository.lock_revision(connection)
        assert repository.forget_history(connection, datetime(2020, 1, 1, tzinfo=UTC), 10) == 0
