"""A small world with a pattern to learn: whoever took item i takes item i + 1 (later: i + 3) next, in a circle."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from service.catalog import service as catalog
from service.catalog.schemas import Item
from service.events import service as events
from service.kit.clock import Clock
from service.kit.db import Database
from service.tables import metadata

ITEMS = 40
USERS = 60
START = datetime(2026, 2, 1, tzinfo=UTC)
COLOURS = ("red", "green", "blue", "white", "black", "amber", "violet", "silver")
THINGS = ("kettle", "lamp", "chair", "radio", "ladder")


def item_id(number: int) -> str:
    """`i00` to `i39`, in a circle."""
    return f"i{number % ITEMS:02d}"


def items(numbers: Iterable[int] = range(ITEMS)) -> list[dict[str, Any]]:
    """Items as PUT /v1/items takes them; every title is another pair of words, the category is the second word."""
    return [
        {
            "item_id": item_id(number),
            "title": f"{COLOURS[number % len(COLOURS)]} {THINGS[number // len(COLOURS) % len(THINGS)]}",
            "categories": [THINGS[number // len(COLOURS) % len(THINGS)]],
        }
        for number in numbers
    ]


def event(event_id: str, user: str, item: str, at: datetime, event_type: str = "view", **more: Any) -> dict[str, Any]:
    """An event as POST /v1/events takes it."""
    return {
        "event_id": event_id,
        "user_id": user,
        "item_id": item,
        "event_type": event_type,
        "occurred_at": at.isoformat(),
        **more,
    }


def walks(
    name: str, *, users: int = USERS, length: int, step: int, after: int = 0, start: datetime = START
) -> Iterator[dict[str, Any]]:
    """Each user walks `length` items in steps of `step`, one a minute, the users one minute after the other.

    A user's walk begins at an item of the user's own, `after` items further round the circle.
    """
    for user in range(users):
        first = random.Random(user).randrange(ITEMS) + after
        for place in range(length):
            at = start + timedelta(minutes=place, seconds=user)
            yield event(f"{name}-{user}-{place}", f"u{user:02d}", item_id(first + place * step), at)


def first_walks() -> list[dict[str, Any]]:
    """What a base is built on: 12 items each, one step at a time."""
    return list(walks("first", length=12, step=1))


def later_walks(number: int = 1, *, users: int = USERS, length: int = 6) -> list[dict[str, Any]]:
    """What a window brings: the same users, further round, three items at a time."""
    return list(
        walks(
            f"later{number}",
            users=users,
            length=length,
            step=3,
            after=12 + 18 * (number - 1),
            start=START + timedelta(days=number),
        )
    )


def put(database: Database, clock: Clock, wanted: Sequence[dict[str, Any]]) -> None:
    """Items straight into the store, without codes."""
    catalog.put_items(database, clock, [Item(**item) for item in wanted])


def send(database: Database, clock: Clock, wanted: Sequence[dict[str, Any]]) -> None:
    """Events straight into the store; all must be taken."""
    report = events.ingest(database, list(wanted), clock=clock, clock_tolerance=timedelta(minutes=5))
    assert report.accepted == len(wanted), report


def row_counts(database: Database) -> dict[str, int]:
    """Rows of every table but the lease's, whose row stays when it is given back."""
    with database.read() as connection:
        tables = [table for table in metadata.sorted_tables if table.name != "leases"]
        return {t.name: connection.scalar(sa.select(sa.func.count()).select_from(t)) or 0 for t in tables}


def eventually(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not become so within {seconds:g} s"
        time.sleep(0.01)
