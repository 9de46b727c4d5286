"""Fixtures that every test shares: a migrated, empty store on each dialect, a clock that a test sets, the real app.

PostgreSQL is taken from ADAPTIDE_TEST_POSTGRES_URL; each session makes a database of its own there, migrates it once
and empties it after each test. Without a server those tests are skipped, or fail with
ADAPTIDE_TEST_REQUIRE_SERVICES=1.
"""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
import structlog
from fastapi import FastAPI
from sqlalchemy.engine import make_url
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.adapters.activation import Activation
from service.app import create_app
from service.kit import migrate
from service.kit.db import Database
from service.settings import Settings
from service.tables import metadata

if TYPE_CHECKING:
    from tests.built import BuiltWorld

with suppress(ModuleNotFoundError):  # the environment of the vLLM tests has no Hypothesis
    from hypothesis import settings as properties

    properties.register_profile("adaptide", deadline=None)  # no test judges how fast this machine is
    properties.load_profile("adaptide")

POSTGRES_URL = os.environ.get("ADAPTIDE_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test")
REQUIRE_SERVICES = os.environ.get("ADAPTIDE_TEST_REQUIRE_SERVICES") == "1"


class SetClock:
    """A clock that stands still until the test moves it."""

    def __init__(self, now: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> None:
        self.now += timedelta(**duration)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> None:
    for name in list(os.environ):
        if name.startswith("ADAPTIDE_") and not name.startswith("ADAPTIDE_TEST_"):
            del os.environ[name]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands configure it, and tests run them in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@contextmanager
def _server(url: str) -> Iterator[sa.Connection]:
    where = make_url(url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(where, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "migrated.db"
    database = Database(f"sqlite:///{path}")
    migrate.upgrade(database)
    database.close()
    return path


class PostgresStore:
    """One migrated database for the session, emptied after each test; made anew when a test changed its schema."""

    def __init__(self) -> None:
        self.name = f"adaptide_test_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        self.url = make_url(POSTGRES_URL).set(database=self.name).render_as_string(hide_password=False)
        self._make()

    def _make(self) -> None:
        with _server(POSTGRES_URL) as server:
            server.execute(sa.text(f'CREATE DATABASE "{self.name}"'))
        database = Database(self.url)
        migrate.upgrade(database)
        database.close()
        self._schema = self._fingerprint()

    def drop(self) -> None:
        with _server(POSTGRES_URL) as server:
            server.execute(sa.text(f'DROP DATABASE "{self.name}" WITH (FORCE)'))

    def reset(self) -> None:
        with _server(POSTGRES_URL) as server:  # a process that a test killed may have left a transaction open
            server.execute(
                sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                {"name": self.name},
            )
        if self._fingerprint() != self._schema:
            self.drop()
            self._make()
            return
        with _server(self.url) as store:
            names = ", ".join(table.name for table in metadata.sorted_tables)
            store.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
            store.execute(sa.text("INSERT INTO catalog_revision (id, revision) VALUES (1, 0)"))
            store.execute(sa.text("INSERT INTO active_adapter (id, revision) VALUES (1, 0)"))

    def _fingerprint(self) -> list[object]:
        query = """
            SELECT c.relname, a.attname FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'i', 'S') ORDER BY 1, 2
        """
        with _server(self.url) as store:
            found: list[object] = [tuple(row) for row in store.execute(sa.text(query))]
        return found


@pytest.fixture(scope="session")
def _postgres() -> Iterator[PostgresStore]:
    try:
        store = PostgresStore()
    except (sa.exc.OperationalError, ModuleNotFoundError) as error:
        reason = (
            f"no PostgreSQL at ADAPTIDE_TEST_POSTGRES_URL ({make_url(POSTGRES_URL)!r}): {str(error).splitlines()[0]}"
        )
        if REQUIRE_SERVICES:
            pytest.fail(reason)
        pytest.skip(reason)
    yield store
    store.drop()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a migrated, empty store that is this test's alone; the test runs once for each dialect."""
    if request.param == "sqlite":
        path = tmp_path / "adaptide.db"
        shutil.copy(request.getfixturevalue("_sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    store: PostgresStore = request.getfixturevalue("_postgres")
    yield store.url
    store.reset()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated, empty Database, once for each dialect."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Development settings over this test's store and an empty HOME; patient with a busy machine's disk."""
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        log_level="WARNING",
        database_answer_timeout=timedelta(seconds=10),
    )


@pytest.fixture
def app(settings: Settings, clock: SetClock) -> FastAPI:
    """The real application; its clock is the test's."""
    return create_app(settings, clock=clock)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """The application after its startup, without a key; it has acted upon the active pointer once."""
    with TestClient(app, raise_server_exceptions=False) as client:
        activation = next(part for part in app.state.services.background if isinstance(part, Activation))
        deadline = time.monotonic() + 10
        while not activation.status().settled:
            assert time.monotonic() < deadline, "the pointer was not read"
            time.sleep(0.001)
        yield client


@pytest.fixture
def admin(app: FastAPI, client: TestClient) -> TestClient:
    """The same client with a key of admin scope (which implies the others)."""
    key = app.state.services.access.create("tests", frozenset({Scope.ADMIN}), actor="cli")
    client.headers["Authorization"] = f"Bearer {key.token}"
    return client


@pytest.fixture(scope="session")
def built_world(tmp_path_factory: pytest.TempPathFactory) -> "BuiltWorld":
    """A base built once, for tests to copy."""
    from tests.built import BuiltWorld  # loads torch, which most tests do without

    return BuiltWorld.build(tmp_path_factory.mktemp("world"))
