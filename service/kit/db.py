"""The store: one engine over SQLite or PostgreSQL, its transactions and types; over 300 lines: one door to both."""

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from service.errors import ConfigurationError, StoreUnavailable
from service.kit import postgres
from service.kit.postgres import Limits

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

PROBE_EVERY_S, PROBE_S = 0.25, 1.0
"""While the server does not answer: the pause between two questions, and how long each waits."""
GONE_S = 5.0
DEADLOCK, LOCK_TIMEOUT, CHECK = "40P01", "55P03", "23514"
"""Codes of PostgreSQL: two transactions waited for each other, one waited too long, a row lies out of its bounds."""

_ATTEMPTS = 4

T = TypeVar("T", str, bytes)
R = TypeVar("R")

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

    def __init__(self, url: str, limits: Limits | None = None, *, lock_timeout_s: float | None = None) -> None:
        """lock_timeout_s: in place of the one in `limits`; connecting takes a third of it at most, 2 s at least.

        Raises ConfigurationError for a URL that is not SQLite or PostgreSQL. Connects lazily.
        """
        limits = limits or Limits()
        if lock_timeout_s is not None:
            limits = replace(limits, lock_s=lock_timeout_s, pool_s=lock_timeout_s, connect_s=lock_timeout_s / 3)
        self.engine = _create_engine(url, limits)
        self.dialect = self.engine.dialect.name
        self.url = self.engine.url
        # Longer than any statement may take: the server itself must be gone.
        self._within_s = limits.statement_s + GONE_S if limits.statement_s and self.dialect == "postgresql" else None
        self._closed = closed = threading.Event()
        self._outage = _Outage(self.engine, closed)

        @event.listens_for(self.engine, "checkin")
        def _end(_connection: object, record: sa.pool.ConnectionPoolEntry) -> None:
            if closed.is_set():  # a pool that was disposed of keeps what comes back to it open
                record.invalidate()

    def within(self, seconds: float) -> "Database":
        """The same store, for callers that cannot wait: on PostgreSQL a transaction ends in StoreUnavailable when the
        server has not answered within `seconds`, and others then do at once until it answers again.

        A commit that was cut off may have been done. SQLite's waits are those for its lock, as ever.
        """
        view = copy(self)
        view._within_s = seconds if self.dialect == "postgresql" else None
        return view

    @contextmanager
    def read(self, *, patient: bool = False) -> Iterator[Connection]:
        """A transaction that only reads (one snapshot on SQLite). Raises StoreUnavailable.

        patient: it may take longer than the limits on statements and answers.
        """
        with self._transaction(writes=False, patient=patient) as connection:
            yield connection

    @contextmanager
    def write(self, *, patient: bool = False, flushed: bool = True) -> Iterator[Connection]:
        """A transaction that commits when the block ends and rolls back when it raises (BEGIN IMMEDIATE on SQLite).

        patient: as for `read`. Not flushed: committed like any other, and the end of this process leaves it be, but the
        disk has it only with the next flushed one. A power cut before that undoes it; never while something written
        later stays (docs/decisions/0024). Raises StoreUnavailable when the store cannot be reached or stays locked.
        """
        with self._transaction(writes=True, patient=patient, flushed=flushed) as connection:
            yield connection

    @contextmanager
    def _transaction(self, *, writes: bool, patient: bool, flushed: bool = True) -> Iterator[Connection]:
        within_s = None if patient else self._within_s
        if within_s is not None and self._outage.lasts:
            raise StoreUnavailable("the database did not answer in time lately", retry_after=1)
        with postgres.deadline(within_s) as deadline:
            try:
                with self.engine.connect() as connection:
                    connection = connection.execution_options(
                        adaptide_writes=writes, adaptide_patient=patient, adaptide_flushed=flushed
                    )
                    with connection.begin():
                        yield connection
            except (OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
                if deadline is not None and deadline.passed:
                    self._outage.begin()
                raise self._unavailable(error) from error
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise self._unavailable(error, "the database connection was lost") from error
                raise

    def _unavailable(self, error: Exception, what: str = "the database did not answer") -> StoreUnavailable:
        brief = _brief(error)
        if self.dialect == "postgresql":
            brief = postgres.explain(brief)
        return StoreUnavailable(f"{what}: {brief}", retry_after=1)

    def require_supported(self) -> None:
        """Raises ConfigurationError for a server that is too old, StoreUnavailable when none answers."""
        with self.read() as connection:
            if self.dialect == "postgresql":
                postgres.require_version(connection)

    def close(self) -> None:
        """End the connections: the idle ones now, those of threads that are not done when they are."""
        self._closed.set()
        self.engine.dispose()


class _Outage:
    """Whether the server has stopped answering: one thread asks it again and again, so that no caller has to."""

    def __init__(self, engine: Engine, closed: threading.Event) -> None:
        self._engine, self._closed = engine, closed
        self._lock = threading.Lock()
        self.lasts = False

    def begin(self) -> None:
        with self._lock:
            if self.lasts or self._closed.is_set():
                return
            self.lasts = True
        threading.Thread(target=self._probe, name="store-probe", daemon=True).start()

    def _probe(self) -> None:
        # At once: where it was one statement that was slow, others are held up for a moment only.
        while not self._answers() and not self._closed.wait(PROBE_EVERY_S):
            pass
        self.lasts = False

    def _answers(self) -> bool:
        try:
            with postgres.deadline(PROBE_S), self._engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
        except (sa.exc.SQLAlchemyError, OSError):
            return False
        return True


def one_of(connection: Connection, column: sa.Column[T], values: Collection[T]) -> sa.ColumnElement[bool]:
    """`column` IN `values`, as one parameter where the dialect has arrays: thousands of them take a driver long.

    There as a join, which stays quick whatever the planner knows of the table: `= ANY (array)` over a table without
    statistics compares every row with every value.
    """
    if connection.dialect.name == "postgresql":
        kind = sa.Text() if isinstance(column.type, sa.String) else column.type
        given = sa.bindparam(None, list(values), type_=postgresql.ARRAY(kind))
        return column.in_(sa.select(sa.func.unnest(given)))
    return column.in_(values)


def sqlstate(error: StoreUnavailable) -> str | None:
    """PostgreSQL's code for what happened: DEADLOCK, LOCK_TIMEOUT or another; None where it said nothing."""
    code = getattr(getattr(error.__cause__, "orig", None), "sqlstate", None)
    return code if isinstance(code, str) else None


def again(work: Callable[[], R], *codes: str) -> R:
    """What `work`, a whole transaction, returns; up to four times while PostgreSQL ends it with one of these codes."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return work()
        except StoreUnavailable as error:
            if sqlstate(error) not in codes:
                raise
    return work()


def limit_lock_waits(connection: Connection, seconds: float) -> None:
    """PostgreSQL: of this transaction, from here on."""
    limit = {"milliseconds": str(int(seconds * 1000))}
    connection.execute(sa.text("SELECT set_config('lock_timeout', :milliseconds, true)"), limit)


def is_lock_wait(error: StoreUnavailable) -> bool:
    """Whether the lock that another transaction holds was waited for too long; that one may have ended by now."""
    original = getattr(error.__cause__, "orig", None)
    busy = getattr(original, "sqlite_errorcode", None)
    return sqlstate(error) == LOCK_TIMEOUT or (busy is not None and busy & 0xFF == sqlite3.SQLITE_BUSY)


def _brief(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__


def _create_engine(url: str, limits: Limits) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "ADAPTIDE_DATABASE_URL is no database URL; write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
        ) from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite_engine(parsed, limits)
    if backend == "postgresql":
        return postgres.create_engine(
            parsed, limits, json_serializer=_dumps, json_deserializer=orjson.loads, hide_parameters=True
        )
    raise ConfigurationError(f"ADAPTIDE_DATABASE_URL names {backend}; sqlite and postgresql are supported")


def _sqlite_engine(url: sa.URL, limits: Limits) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError(
            "an in-memory SQLite database is lost with its connection; name a file: sqlite:///PATH"
        )
    Path(url.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url,
        poolclass=sa.pool.QueuePool,
        pool_size=limits.pool_size,
        max_overflow=limits.pool_overflow,
        pool_timeout=limits.pool_s,
        connect_args={"timeout": limits.lock_s, "check_same_thread": False},
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
        hide_parameters=True,  # they name users, and a defect's traceback goes into the log
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


def _dumps(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
