"""PostgreSQL's side of the store: its engine, session limits, waits that end, and what is wrong with a server."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from service.errors import ConfigurationError

if TYPE_CHECKING:
    import psycopg

OLDEST = 15
"""The oldest major version of PostgreSQL that is supported."""
SHORTEST_CONNECT_S = 2  # libpq's own least
LONGEST_IDLE_S = (
    60  # in a transaction that answers a request: only a stuck process idles so long, and its locks hold others
)
LONGEST_WORKING_S = 900  # in an updater's: between its queries it may have much to do
NOTICE_GONE_S = 2  # how soon the server ends a statement whose client has hung up

_waiting = threading.local()


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections, and how long to wait for what; seconds. statement_s: 0 is for ever.

    transaction_pooler: there is one such as pgbouncer in between, which gives each transaction another session: no
    start-up options, no prepared statements, limits set in each transaction anew.
    """

    pool_size: int = 10
    pool_overflow: int = 10
    pool_s: float = 10.0
    connect_s: float = 3.0
    lock_s: float = 10.0
    statement_s: float = 0.0
    transaction_pooler: bool = False


class Deadline:
    """A moment until which a thread waits for the server."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._until - time.monotonic())

    @property
    def passed(self) -> bool:
        return not self.left_s


@contextmanager
def deadline(seconds: float | None) -> Iterator[Deadline | None]:
    """Within the block this thread waits for the server until then and no longer; None: as long as it takes.

    A wait that is cut short closes its connection: whether the server did what it was asked is unknown then.
    """
    before = _present()
    _waiting.deadline = None if seconds is None else Deadline(seconds)
    try:
        yield _waiting.deadline
    finally:
        _waiting.deadline = before


def _present() -> Deadline | None:
    return getattr(_waiting, "deadline", None)


def create_engine(url: sa.URL, limits: Limits, **arguments: Any) -> Engine:
    """Raises ConfigurationError without the driver, or for a part of the URL that the driver does not know."""
    try:
        import psycopg
    except ModuleNotFoundError as error:
        raise ConfigurationError("PostgreSQL needs the driver: pip install 'adaptide[postgres]'") from error
    connect: dict[str, Any] = {"connect_timeout": max(SHORTEST_CONNECT_S, round(limits.connect_s))}
    if limits.transaction_pooler:
        connect["prepare_threshold"] = None
    else:
        connect["options"] = " ".join(f"-c {name}={value}" for name, value in _session(limits).items())
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=limits.pool_size,
        max_overflow=limits.pool_overflow,
        pool_timeout=limits.pool_s,
        pool_pre_ping=True,
        # Said at each BEGIN, whatever a role, a database or a pooler would have it be. What waits for a lock reads what
        # was committed meanwhile, which a snapshot from before the wait would not show.
        isolation_level="READ COMMITTED",
        connect_args=connect,
        **arguments,
    )
    connection_class = _bounded(psycopg)

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: object, _record: object, given: list[Any], named: dict[str, Any]) -> Any:
        return connection_class.connect(*given, **named)

    if limits.transaction_pooler:
        _set_in_each_transaction(engine, limits)
    elif limits.statement_s:

        @event.listens_for(engine, "begin")
        def _patient(connection: Connection) -> None:
            if connection.get_execution_options().get("adaptide_patient"):
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")

    @event.listens_for(engine, "begin")
    def _unflushed(connection: Connection) -> None:
        if not connection.get_execution_options().get("adaptide_flushed", True):
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")

    return engine


def require_version(connection: Connection) -> None:
    """Raises ConfigurationError for a server that is too old."""
    found = connection.dialect.server_version_info or (OLDEST,)
    if int(found[0]) < OLDEST:
        version = ".".join(str(part) for part in found)
        raise ConfigurationError(f"the database is PostgreSQL {version}; {OLDEST} or newer is needed")


def explain(message: str) -> str:
    """A connection failure's first line, with what to do about it where the line says enough."""
    text = message.casefold()
    for sign, advice in _ADVICE:
        if sign in text:
            return f"{message} ({advice})"
    return message


_URL = "correct ADAPTIDE_DATABASE_URL"
_ADVICE = (  # English: libpq's own messages are, and a server's where it was not told otherwise
    ("password authentication failed", f"wrong user or password: {_URL}"),
    ("no password supplied", f"it wants a password: {_URL}"),
    ("no pg_hba.conf entry", "the server takes nobody from here as that user: add a line to its pg_hba.conf"),
    ("unsupported startup parameter", "a pooler is in between: set ADAPTIDE_DATABASE_POOLER=transaction"),
    ("could not translate host name", f"no such host: {_URL}"),
    ("failed to resolve host", f"no such host: {_URL}"),
    ("connection refused", f"start the server, or {_URL}"),
    ("timeout expired", f"nothing answers there: start the server, open the way to it, or {_URL}"),
    ("role", f"no such user: {_URL}"),
    ("does not exist", f"create it with `createdb`, or {_URL}"),
)


def _session(limits: Limits) -> dict[str, str]:
    """Settings of a session, values without blanks."""
    idle_s = LONGEST_IDLE_S if limits.statement_s else LONGEST_WORKING_S
    return {
        "lock_timeout": f"{limits.lock_s * 1000:.0f}",
        "statement_timeout": f"{limits.statement_s * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{idle_s * 1000}",
        "client_connection_check_interval": f"{NOTICE_GONE_S * 1000}",
        "timezone": "UTC",
    }


def _set_in_each_transaction(engine: Engine, limits: Limits) -> None:
    session = _session(limits)
    calls = {
        patient: "SELECT "
        + ", ".join(
            f"set_config('{name}', '{'0' if patient and name == 'statement_timeout' else value}', true)"
            for name, value in session.items()
        )
        for patient in (False, True)
    }

    @event.listens_for(engine, "begin")
    def _set(connection: Connection) -> None:
        connection.exec_driver_sql(calls[bool(connection.get_execution_options().get("adaptide_patient"))])


def _bounded(driver: Any) -> type["psycopg.Connection[Any]"]:
    """The driver's connection, whose waits end at the waiting thread's `deadline`."""

    class Bounded(driver.Connection):  # type: ignore[misc]  # a class only where the driver is installed
        @classmethod
        def _connect_gen(cls, *given: Any, **named: Any) -> Any:
            # Private, and worth it: the driver waits two seconds at least for a connection. Were it renamed, deadlines
            # would only be kept less exactly.
            return _until_deadline(super()._connect_gen(*given, **named), driver.errors.ConnectionTimeout)

        def wait(self, gen: Any, *given: Any, **named: Any) -> Any:
            if (deadline := _present()) is None:
                return super().wait(gen, *given, **named)
            named["timeout"] = deadline.left_s
            try:
                return super().wait(gen, *given, **named)
            except driver.errors._WaitTimeout:
                self.pgconn.finish()  # in the middle of a reply: of no more use
                raise driver.OperationalError("no answer in time") from None

    return Bounded


def _until_deadline(generator: Any, timeout: type[Exception]) -> Any:
    """`generator`, which the driver resumes ten times a second, ended by `timeout` at the deadline."""
    try:
        wanted = next(generator)
        while True:
            ready = yield wanted
            if (deadline := _present()) is not None and deadline.passed:
                generator.close()
                raise timeout("connection timeout expired")
            wanted = generator.send(ready)
    except StopIteration as done:
        return done.value
