"""What happens between two statements of a read or a move: nothing is lost, nobody is told what is not so."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from service.adapters import integrity, service
from service.adapters.moves import Activation, MoveRequest
from service.adapters.states import AdapterState
from service.audit.tables import audit_log
from service.errors import PreconditionFailed
from service.kit.db import Database
from tests.adapters.tiny import Shelf

ADMIN = MoveRequest("key:admin")
PATIENCE_S = 1.0  # for a deed that has to wait for the transaction it came into


@contextmanager
def interrupted(
    database: Database, words: str, deed: Callable[[], Any], *, writes: bool = False
) -> Iterator[list[Any]]:
    """`deed` is done by somebody else after the first statement of the block with these words; what came of it.

    writes: only a statement of a transaction that writes is meant.
    """
    done: list[Any] = []
    others: list[threading.Thread] = []

    def after(
        connection: sa.Connection, cursor: object, statement: str, parameters: object, context: object, many: bool
    ) -> None:
        if others or words not in statement:
            return
        if writes and not connection.get_execution_options().get("adaptide_writes"):
            return
        others.append(threading.Thread(target=lambda: done.append(deed())))
        others[0].start()
        others[0].join(PATIENCE_S)

    sa.event.listen(database.engine, "after_cursor_execute", after)
    try:
        yield done
    finally:
        sa.event.remove(database.engine, "after_cursor_execute", after)
    assert others, f"no statement has {words!r}"
    others[0].join()


def promote(shelf: Shelf, version: str, request: MoveRequest = ADMIN) -> Activation:
    return service.promote(shelf.database, shelf.clock, shelf.artifacts, version, request)


def test_a_mark_is_not_lost_to_a_promotion_that_has_looked_already(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)

    def mark() -> None:
        integrity.mark_corrupt(shelf.database, shelf.clock, version, "a replica says so", actor="service")

    with interrupted(shelf.database, "FROM adapters", mark, writes=True):
        promote(shelf, version)
    assert service.read_adapter(shelf.database, version).adapter.state is AdapterState.CORRUPT
    with shelf.database.read() as connection:
        noted = connection.scalars(sa.select(audit_log.c.details).where(audit_log.c.action == "adapter.corrupt")).one()
    assert noted is not None
    assert noted["was"] == "active"


@pytest.mark.parametrize("to_version", [None, "base"])
def test_the_twin_of_a_rollback_is_answered_alike_whenever_it_comes(shelf: Shelf, to_version: str | None) -> None:
    promote(shelf, shelf.adapter(shelf.active_base(), 0.1))
    request = MoveRequest("key:admin", expected_revision=2, idempotency_key="twin")

    def roll_back() -> Activation:
        return service.rollback(shelf.database, shelf.clock, shelf.artifacts, request, to_version)

    with interrupted(shelf.database, "activations.idempotency_key =", roll_back) as twin:
        done = roll_back()
    assert twin == [done]
    assert done.revision == 3


@pytest.mark.parametrize("first", ["FROM active_adapter", "FROM adapters"])
def test_who_was_shown_what_is_no_longer_so_cannot_act_on_it(shelf: Shelf, first: str) -> None:
    base = shelf.active_base()
    one, two, three = (shelf.adapter(base, value) for value in (0.1, 0.2, 0.3))
    with interrupted(shelf.database, first, lambda: promote(shelf, one)):
        shown = service.read_registry(shelf.database).pointer.revision
    with pytest.raises(PreconditionFailed):
        promote(shelf, three, MoveRequest("key:admin", expected_revision=shown))
    with interrupted(shelf.database, first, lambda: promote(shelf, two)):
        shown = service.read_adapter(shelf.database, one).revision
    with pytest.raises(PreconditionFailed):
        promote(shelf, three, MoveRequest("key:admin", expected_revision=shown))
