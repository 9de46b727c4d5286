"""The store: one engine over SQLite or PostgreSQL, `read()` and `write()` transactions, portable column types."""

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from service.errors import ConfigurationError, StoreUnavailable

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
BigInt = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # only INTEGER is a rowid alias on SQLite


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Aware UTC in and out; a naive value is refused. SQLite stores naive UTC text, which sorts by time."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime given to the store: attach a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Database:
    """Transactions over one store. Safe to share between threads, not across fork."""

    def __init__(self, url: str, *, pool_size: int = 10, lock_timeout_s: float = 10.0) -> None:
        """Raises ConfigurationError for a URL that is not SQLite or PostgreSQL. Connects lazily."""
        self.engine = _create_engine(url, pool_size, lock_timeout_s)
        self.dialect = self.engine.dialect.name
        self.url = self.engine.url

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads (one snapshot on SQLite). Raises StoreUnavailable."""
        with self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def write(self, *, flushed: bool = True) -> Iterator[Connection]:
        """A transaction that commits when the block ends and rolls back when it raises (BEGIN IMMEDIATE on SQLite).

        Not flushed: committed like any other, and the end of this process leaves it be, but the disk has it only with
        the next flushed one. A power cut before that undoes it; never while something written later stays
        (docs/decisions/0024). Raises StoreUnavailable when the store cannot be reached or stays locked.
        """
        with self._transaction(writes=True, flushed=flushed) as connection:
            yield connection

    @contextmanager
    def _transaction(self, *, writes: bool, flushed: bool = True) -> Iterator[Connection]:
        try:
            with self.engine.connect() as connection:
                connection = connection.execution_options(adaptide_writes=writes, adaptide_flushed=flushed)
                with connection.begin():
                    yield connection
        except (OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
            raise StoreUnavailable(f"the database did not answer: {_brief(error)}", retry_after=1) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise StoreUnavailable(f"the database connection was lost: {_brief(error)}", retry_after=1) from error
            raise

    def close(self) -> None:
        self.engine.dispose()


def one_of(connection: Connection, column: sa.Column[str], values: Collection[str]) -> sa.ColumnElement[bool]:
    """`column` IN `values`, as one parameter where the dialect has arrays: thousands of them take a driver long.

    There as a join, which stays quick whatever the planner knows of the table: `= ANY (array)` over a table without
    statistics compares every row with every value.
    """
    if connection.dialect.name == "postgresql":
        given = sa.bindparam(None, list(values), type_=postgresql.ARRAY(sa.Text))
        return column.in_(sa.select(sa.func.unnest(given)))
    return column.in_(values)


def _brief(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__


def _create_engine(url: str, pool_size: int, lock_timeout_s: float) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "ADAPTIDE_DATABASE_URL is no database URL; write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
        ) from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite_engine(parsed, pool_size, lock_timeout_s)
    if backend == "postgresql":
        return _postgres_engine(parsed, pool_size, lock_timeout_s)
    raise ConfigurationError(f"ADAPTIDE_DATABASE_URL names {backend}; sqlite and postgresql are supported")


def _sqlite_engine(url: sa.URL, pool_size: int, lock_timeout_s: float) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError(
            "an in-memory SQLite database is lost with its connection; name a file: sqlite:///PATH"
        )
    Path(url.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url,
        poolclass=sa.pool.QueuePool,
        pool_size=pool_size,
        max_overflow=pool_size,
        connect_args={"timeout": lock_timeout_s, "check_same_thread": False},
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # BEGIN is ours: the driver's own would be deferred
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "cache_size=-32768",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A deferred transaction that reads and then writes fails at once with "locked"; a writer takes its lock first.
        options = connection.get_execution_options()
        if not options.get("adaptide_writes", True):
            connection.exec_driver_sql("BEGIN")
            return
        level = "FULL" if options.get("adaptide_flushed", True) else "NORMAL"
        if connection.info.get("synchronous", "FULL") != level:  # info lives as long as the driver's connection
            connection.exec_driver_sql(f"PRAGMA synchronous={level}")
            connection.info["synchronous"] = level
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgres_engine(url: sa.URL, pool_size: int, lock_timeout_s: float) -> Engine:
    milliseconds = int(lock_timeout_s * 1000)
    try:
        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=lock_timeout_s,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": max(2, int(lock_timeout_s / 3)),
                "options": f"-c lock_timeout={milliseconds} -c timezone=UTC "
                "-c idle_in_transaction_session_timeout=60000",
            },
            json_serializer=_dumps,
            json_deserializer=orjson.loads,
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError("PostgreSQL needs the driver: pip install 'adaptide[postgres]'") from error

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("adaptide_flushed", True):
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")

    return engine


def _dumps(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
