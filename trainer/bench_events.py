"""Events a second into each store: through the service, over HTTP, row by row, and in bulk."""

import json
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np

from service.access.schemas import Scope
from service.access.service import AccessService
from service.catalog import service as catalog
from service.catalog.schemas import Item
from service.errors import Unavailable
from service.events import service as events
from service.events.endpoints import parse_batch
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import PREFIX
from trainer.bench_stores import empty_store

BATCH = 500
USERS, ITEMS = 50_000, 5_000
TOLERANCE = timedelta(minutes=5)
SERVER_STARTS_S = 60
COLUMNS = ("event_id", "user_id", "item_id", "event_type", "occurred_at", "received_at", "value")
_NAMES = ", ".join(COLUMNS)
_HASH = bytes(32)

Batch = Sequence[Mapping[str, Any]]
Send = Callable[[Batch], None]
"""Stores one batch, durable when it returns. Called by several threads at once."""


@dataclass(frozen=True, slots=True)
class EventsRow:
    """way: "service" (parsing, validation and storing, in this process), "http" (the same behind a server process),
    "rows" (an INSERT for each event and for its id, a commit for each batch, nothing checked), "bulk" (executemany or
    COPY, likewise).

    events_per_s: the median round; fewest and most: of the rounds. of_bulk, over_rows: median of its rounds' ratios to
    those two ways.
    """

    store: str
    way: str
    writers: int
    batch: int
    events_per_s: float
    fewest: float
    most: float
    of_bulk: float
    over_rows: float


def bench_events(
    server: str | None, writers: int, *, batches: int, rounds: int, seed: int, over_http: bool = True
) -> list[EventsRow]:
    """One row for each way. Each has a store of its own; in each round every way takes `batches` new batches."""
    random = np.random.default_rng(seed)
    with ExitStack() as stack, ThreadPoolExecutor(writers) as pool:
        ways: dict[str, Send] = {}
        for name, way in WAYS.items():
            if name != "http" or over_http:
                database = stack.enter_context(empty_store(server))
                _put_items(database)
                ways[name] = stack.enter_context(way(database))
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, send in ways.items():
                sent = [make_batch(random) for _ in range(batches)]
                started = time.perf_counter()
                list(pool.map(send, sent))
                if turn:  # the first one connects
                    rates[name].append(batches * BATCH / (time.perf_counter() - started))
    store = "sqlite" if server is None else "postgresql"
    return [
        EventsRow(
            store,
            name,
            writers,
            BATCH,
            statistics.median(own),
            min(own),
            max(own),
            *(statistics.median(a / b for a, b in zip(own, rates[peer], strict=True)) for peer in ("bulk", "rows")),
        )
        for name, own in rates.items()
    ]


def make_batch(random: np.random.Generator) -> list[dict[str, Any]]:
    """Events as a client sends them: half with a value, a quarter with properties."""
    now = datetime.now(UTC)
    made = []
    drawn = random.integers(0, [[USERS], [ITEMS], [4]], (3, BATCH)).T.tolist()
    for place, (user, item, rest) in enumerate(drawn):
        event: dict[str, Any] = {
            "event_id": uuid.uuid4().hex,
            "user_id": f"u{user}",
            "item_id": f"i{item}",
            "event_type": "view",
            "occurred_at": (now - timedelta(milliseconds=BATCH - place)).isoformat(),
        }
        if rest % 2:
            event["value"] = rest + 0.5
        if rest == 2:
            event["properties"] = {"source": "search", "position": place}
        made.append(event)
    return made


@contextmanager
def _service(database: Database) -> Iterator[Send]:
    def send(batch: Batch) -> None:
        report = events.ingest(
            database, parse_batch(json.dumps({"events": batch}).encode()), clock=utc_now, clock_tolerance=TOLERANCE
        )
        if report.accepted != len(batch):
            raise Unavailable(f"not every event was taken: {report}")

    yield send


@contextmanager
def _http(database: Database) -> Iterator[Send]:
    """The server's own process, and one client for each thread."""
    key = AccessService(database, utc_now).create("bench", frozenset({Scope.WRITE}), actor="cli").token
    with (
        _server(database) as address,
        httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client,
    ):

        def send(batch: Batch) -> None:
            reply = client.post("/v1/events", json={"events": batch})
            if not reply.is_success or reply.json()["accepted"] != len(batch):
                raise Unavailable(f"not every event was taken: {reply.status_code} {reply.text[:200]}")

        yield send


@contextmanager
def _server(database: Database) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="adaptide-bench-") as home:
        own = {
            "HOME": home,
            "DATABASE_URL": database.url.render_as_string(hide_password=False),
            "LOG_LEVEL": "WARNING",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        with subprocess.Popen(
            [sys.executable, "-m", "trainer.cli", "serve", "--port", "0"],
            env=kept | {PREFIX + name: value for name, value in own.items()},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None  # noqa: S101  # a pipe was asked for
                found = re.search(r"http://[\w.:]+\d", process.stdout.readline())
                if found is None:
                    raise Unavailable("the server did not start; standard error says why")
                _until_ready(found[0])
                yield found[0]
            finally:
                process.terminate()


def _until_ready(address: str) -> None:
    deadline = time.monotonic() + SERVER_STARTS_S
    while True:
        try:
            if httpx.get(f"{address}/health/ready").is_success:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise Unavailable(f"the server was not ready within {SERVER_STARTS_S} s")
        time.sleep(0.05)


def _rows(batch: Batch) -> list[tuple[object, ...]]:
    now = str(datetime.now(UTC))
    return [
        (e["event_id"], e["user_id"], e["item_id"], e["event_type"], e["occurred_at"], now, e.get("value"))
        for e in batch
    ]


@contextmanager
def _one_by_one(database: Database) -> Iterator[Send]:
    mark = "?" if database.dialect == "sqlite" else "%s"
    insert = f"INSERT INTO events ({_NAMES}) VALUES ({', '.join([mark] * len(COLUMNS))})"  # noqa: S608
    claim = f"INSERT INTO event_ids VALUES ({mark}, {mark})"  # noqa: S608

    def send(batch: Batch) -> None:
        with database.write() as connection:
            cursor = connection.connection.cursor()
            for row in _rows(batch):
                cursor.execute(claim, (row[0], _HASH))
                cursor.execute(insert, row)

    yield send


@contextmanager
def _bulk(database: Database) -> Iterator[Send]:
    insert = f"INSERT INTO events ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608

    def send(batch: Batch) -> None:
        with database.write() as connection:
            driver: Any = connection.connection.driver_connection
            rows = _rows(batch)
            ids = [(row[0], _HASH) for row in rows]
            if isinstance(driver, sqlite3.Connection):
                driver.executemany("INSERT INTO event_ids VALUES (?, ?)", ids)
                driver.executemany(insert, rows)
                return
            with driver.cursor() as cursor:
                for target, copied in (("event_ids", ids), (f"events ({_NAMES})", rows)):
                    with cursor.copy(f"COPY {target} FROM STDIN") as copy:
                        for row in copied:
                            copy.write_row(row)

    yield send


WAYS = {"service": _service, "http": _http, "rows": _one_by_one, "bulk": _bulk}


def _put_items(database: Database) -> None:
    for first in range(0, ITEMS, BATCH):
        items = [Item(item_id=f"i{number}", title=f"thing {number}") for number in range(first, first + BATCH)]
        catalog.put_items(database, utc_now, items)
