"""Stores for benchmarks: SQLite in a folder of its own, and a database of its own on a PostgreSQL server."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from service.errors import ConfigurationError
from service.kit import migrate
from service.kit.db import Database

POSTGRES_URL = "ADAPTIDE_TEST_POSTGRES_URL"


def servers(postgres: str | None) -> list[str | None]:
    """Where to measure: None is SQLite, a URL is a PostgreSQL server on which databases may be created.

    postgres: a server that has to answer; otherwise that of ADAPTIDE_TEST_POSTGRES_URL takes part if it does. Raises
    ConfigurationError.
    """
    url = postgres or os.environ.get(POSTGRES_URL)
    if not url:
        return [None]
    try:
        with _server(url):
            return [None, url]
    except (sa.exc.OperationalError, sa.exc.ArgumentError, ModuleNotFoundError) as error:
        if postgres is None:
            return [None]
        raise ConfigurationError(f"--postgres cannot be used: {str(error).splitlines()[0]}") from error


@contextmanager
def empty_store(server: str | None) -> Iterator[Database]:
    """A migrated, empty store, gone afterwards."""
    if server is None:
        with tempfile.TemporaryDirectory(prefix="adaptide-bench-") as folder:
            with _migrated(f"sqlite:///{Path(folder) / 'adaptide.db'}") as database:
                yield database
        return
    name = f"adaptide_bench_{uuid.uuid4().hex[:12]}"
    with _server(server) as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    try:
        with _migrated(make_url(server).set(database=name).render_as_string(hide_password=False)) as database:
            yield database
    finally:
        with _server(server) as connection:
            connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))


@contextmanager
def _migrated(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        migrate.upgrade(database)
        yield database
    finally:
        database.close()


@contextmanager
def _server(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        poolclass=sa.NullPool,
        connect_args={"connect_timeout": 5},
    )
    with engine.connect() as connection:
        yield connection


_BOTH = """
    INSERT INTO events (event_id, user_id, item_id, event_type, occurred_at, received_at)
    SELECT {prefix} || n, 'u' || {user}, 'i' || {item}, 'view', {at}, {at} FROM {numbers}
"""
_SQLITE = _BOTH.format(
    prefix=":prefix",
    user="CAST(:users * {user_draw} AS INTEGER)",
    item="CAST(:items * s * s AS INTEGER)",
    at="strftime('%Y-%m-%d %H:%M:%S', :start + n * :spacing, 'unixepoch') || '.000000'",
    numbers="""(
        WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < :events)
        SELECT n, abs(random() % 1000000000) / 1e9 AS r, abs(random() % 1000000000) / 1e9 AS s FROM counted
    )""",
)
_POSTGRES = _BOTH.format(
    prefix="CAST(:prefix AS text)",
    user="floor(:users * {user_draw})::bigint",
    item="floor(:items * s * s)::bigint",
    at="to_timestamp(:start + n * :spacing)",
    numbers="(SELECT n, random() AS r, random() AS s FROM generate_series(1, :events) AS n ORDER BY n) AS numbered",
)

_IDS = {
    "sqlite": """
        INSERT INTO event_ids (event_id, body_hash)
        WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < :events)
        SELECT :prefix || n, randomblob(32) FROM counted WHERE n <= :events
    """,
    "postgresql": """
        INSERT INTO event_ids (event_id, body_hash)
        SELECT CAST(:prefix AS text) || n, sha256(n::text::bytea) FROM generate_series(1, :events) AS n
    """,
}


def fill(
    database: Database,
    events: int,
    *,
    users: int,
    items: int,
    start: float,
    days: float,
    prefix: str,
    equal_users: bool = False,
) -> None:
    """`events` views in order of time, spread over `days` from `start` (unix seconds), made inside the database.

    User `u<k>` and item `i<k>` are drawn with a density that falls with the root of k: most have little, a few much.
    equal_users: users have about equally many instead.
    """
    text = (_POSTGRES if database.dialect == "postgresql" else _SQLITE).format(
        user_draw="r" if equal_users else "r * r"
    )
    spacing = days * 86_400 / max(events, 1)
    values = {"events": events, "users": users, "items": items, "start": start, "spacing": spacing, "prefix": prefix}
    with database.write() as connection:
        connection.execute(sa.text(text), values)
        connection.execute(sa.text(_IDS[database.dialect]), {"prefix": prefix, "events": events})
    if database.dialect == "postgresql":  # SQLite plans from its schema alone
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # As autovacuum does: only what has rows.
            filled = connection.exec_driver_sql(
                "SELECT relid::regclass::text FROM pg_partition_tree('events') "
                "WHERE isleaf AND pg_relation_size(relid) > 0"
            ).scalars()
            for table in ("event_ids", *filled.all()):
                connection.exec_driver_sql(f"VACUUM ANALYZE {table}")


_CODES = ", ".join(f"(h >> {shift}) & 255" for shift in (24, 16, 8, 0))
_ITEMS = f"""
    INSERT INTO items (item_id, title, categories, available, base_id, code_0, code_1, code_2, code_3, created_at,
                       updated_at, revision)
    SELECT 'i' || n, 'thing ' || n, {{categories}}, {{true}}, :base_id, {_CODES}, {{now}}, {{now}}, 1
    FROM (SELECT n, (n * 2654435761) % 4294967296 AS h FROM {{numbers}} AS numbers) AS hashed
"""  # noqa: S608  # the parts are this module's
_SQLITE_ITEMS = _ITEMS.format(
    categories="'[\"things\"]'",
    true="1",
    now="strftime('%Y-%m-%d %H:%M:%S', 'now') || '.000000'",
    numbers="""(
        WITH RECURSIVE counted(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM counted WHERE n < :items - 1)
        SELECT n FROM counted
    )""",
)
_POSTGRES_ITEMS = _ITEMS.format(
    categories="'[\"things\"]'::jsonb",
    true="true",
    now="now()",
    numbers="(SELECT CAST(generate_series(0, :items - 1) AS bigint) AS n)",
)


def fill_items(database: Database, items: int, base_id: str) -> None:
    """Items `i0` and up, each with a semantic ID of its own under base `base_id`, scattered over all there are."""
    sql = _POSTGRES_ITEMS if database.dialect == "postgresql" else _SQLITE_ITEMS
    with database.write() as connection:
        connection.execute(sa.text(sql), {"items": items, "base_id": base_id})
        connection.exec_driver_sql("UPDATE catalog_revision SET revision = 1")
