"""PostgreSQL whose database, or a connection's own options, ask for another isolation than what locks rely on."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from service.adapters import service as adapters
from service.adapters.moves import Activation, MoveRequest
from service.kit.db import Database
from service.kit.postgres import Limits
from service.settings import Settings
from service.windows import service
from service.windows.repository import Window
from service.windows.states import SealedBecause
from tests.adapters.tiny import Shelf
from tests.conftest import PostgresStore, SetClock, _server
from tests.windows.streams import insert_events, write_events
from tests.worlds import eventually

pytestmark = pytest.mark.postgres
STRICT = "repeatable read"


@pytest.fixture(params=["direct", "pooler"])
def database(request: pytest.FixtureRequest, _postgres: PostgresStore) -> Iterator[Database]:
    """The session's own database, told to begin transactions otherwise."""
    url = make_url(_postgres.url)
    with _server(_postgres.url) as server:
        server.execute(sa.text(f"ALTER DATABASE \"{url.database}\" SET default_transaction_isolation = '{STRICT}'"))
    with _server(_postgres.url) as server:
        assert server.scalar(sa.text("SHOW default_transaction_isolation")) == STRICT
    pooled = request.param == "pooler"  # whose connections take options from the URL
    if pooled:
        url = url.update_query_dict({"options": "-c default_transaction_isolation=repeatable\\ read"})
    made = Database(url.render_as_string(hide_password=False), Limits(transaction_pooler=pooled))
    yield made
    made.close()
    with _server(_postgres.url) as server:
        server.execute(sa.text(f'ALTER DATABASE "{url.database}" RESET default_transaction_isolation'))
    _postgres.reset()


def isolation(connection: sa.Connection) -> object:
    return connection.scalar(sa.text("SHOW transaction_isolation"))


def waiting(database: Database) -> int:
    """Transactions that wait for a lock."""
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :name")
    with database.read() as connection:
        return connection.scalar(query, {"name": database.url.database}) or 0


def test_every_transaction_reads_what_is_committed(database: Database) -> None:
    for _ in range(2):  # a new connection, and one from the pool
        transactions = [database.read(), database.read(patient=True), database.write(), database.write(flushed=False)]
        for transaction in transactions:
            with transaction as connection:
                assert isolation(connection) == "read committed"
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            assert connection.scalar(sa.text("SELECT 1")) == 1


def test_a_seal_holds_what_was_written_while_it_waited(database: Database, clock: SetClock, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, window_max_events=100, window_min_events=1)
    before = write_events(database, 2)
    sealed: list[Window | None] = []
    sealing = threading.Thread(
        target=lambda: sealed.append(service.seal(database, clock, settings, SealedBecause.MANUAL))
    )
    with database.write() as writer:
        meanwhile = insert_events(writer, 3)
        sealing.start()
        eventually(lambda: waiting(database) == 1, 10)
    sealing.join()
    [window] = sealed
    assert window is not None
    assert (window.events, window.through_seq) == (len(before) + len(meanwhile), meanwhile[-1])


def test_promotions_at_once_all_succeed_one_after_the_other(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path, database, clock)
    base = shelf.active_base()
    versions = [shelf.adapter(base, value) for value in (0.1, 0.2)]
    done: list[Activation] = []

    def promote(version: str) -> None:
        done.append(adapters.promote(database, clock, shelf.artifacts, version, MoveRequest("key:admin")))

    others = [threading.Thread(target=promote, args=[version]) for version in versions]
    with database.write() as connection:
        connection.execute(sa.text("SELECT 1 FROM active_adapter FOR UPDATE"))
        for other in others:
            other.start()
        eventually(lambda: waiting(database) == len(others), 10)
        connection.execute(sa.text("UPDATE active_adapter SET id = id"))
    for other in others:
        other.join()
    assert sorted(move.revision for move in done) == [2, 3]
