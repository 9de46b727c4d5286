"""Promote, roll back, install a base: one pointer, one history, on both stores."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from service.adapters import integrity, repository, service
from service.adapters.moves import Activation, MoveRequest
from service.adapters.repository import NewAdapter, NewBase
from service.adapters.states import AdapterState
from service.adapters.tables import activations
from service.audit.tables import audit_log
from service.errors import Conflict, NotFound, PreconditionFailed
from service.kit.db import Database
from tests.adapters.tiny import Shelf

ADMIN = MoveRequest("key:admin")


def promote(shelf: Shelf, version: str, request: MoveRequest = ADMIN) -> Activation:
    return service.promote(shelf.database, shelf.clock, shelf.artifacts, version, request)


def rollback(shelf: Shelf, to_version: str | None = None, request: MoveRequest = ADMIN) -> Activation:
    return service.rollback(shelf.database, shelf.clock, shelf.artifacts, request, to_version)


def state(shelf: Shelf, version: str) -> AdapterState:
    return service.read_adapter(shelf.database, version).adapter.state


def active(shelf: Shelf) -> str | None:
    return service.read_registry(shelf.database).pointer.adapter_version


def rows(database: Database, table: sa.Table) -> int:
    with database.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_nothing_is_active_in_an_empty_store(database: Database) -> None:
    found = service.read_registry(database)
    assert (found.pointer.revision, found.pointer.base_id, found.pointer.adapter_version) == (0, None, None)
    assert found.adapters == []


def test_a_promotion_moves_the_pointer_and_both_states(shelf: Shelf) -> None:
    base = shelf.active_base()
    first, second = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    assert promote(shelf, first).revision == 2
    done = promote(shelf, second)
    assert (done.from_version, done.to_version, done.revision) == (first, second, 3)
    assert (state(shelf, first), state(shelf, second)) == (AdapterState.RETIRED, AdapterState.ACTIVE)
    assert active(shelf) == second


def test_each_move_is_in_the_history_and_in_the_audit_log_under_one_id(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    done = promote(shelf, version, MoveRequest("key:admin", "looks good"))
    detail = service.read_adapter(shelf.database, version)
    assert [(row.audit_id, row.reason) for row in detail.history] == [(done.audit_id, "looks good")]
    with shelf.database.read() as connection:
        row = connection.execute(sa.select(audit_log).where(audit_log.c.audit_id == done.audit_id)).one()
    assert (row.action, row.subject, row.actor) == ("adapter.promote", version, "key:admin")


def test_the_history_cannot_be_changed(shelf: Shelf) -> None:
    shelf.active_base()
    for statement in (activations.update().values(actor="nobody"), activations.delete()):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), shelf.database.write() as connection:
            connection.execute(statement)


@pytest.mark.parametrize("initial", [AdapterState.CANDIDATE, AdapterState.PASSED])
def test_an_admin_may_promote_what_was_not_refused(shelf: Shelf, initial: AdapterState) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1, initial)
    assert promote(shelf, version).to_version == version


def test_a_refused_adapter_cannot_be_promoted(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1, AdapterState.REFUSED)
    with pytest.raises(Conflict, match="is refused"):
        promote(shelf, version)


def test_the_active_adapter_cannot_be_promoted_again(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    promote(shelf, version)
    with pytest.raises(Conflict, match="active already"):
        promote(shelf, version)


def test_an_unknown_adapter_is_not_found(shelf: Shelf) -> None:
    with pytest.raises(NotFound, match="adapters list"):
        promote(shelf, "a000001-000000000000")


def test_an_adapter_of_another_base_cannot_be_promoted(shelf: Shelf) -> None:
    shelf.active_base(0.5)
    other = shelf.adapter(shelf.base(0.75), 0.1)
    with pytest.raises(Conflict, match="was made for base"):
        promote(shelf, other)


def test_a_stale_revision_is_refused_and_changes_nothing(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    with pytest.raises(PreconditionFailed, match="the revision is 1, not 0"):
        promote(shelf, version, MoveRequest("key:admin", expected_revision=0))
    assert active(shelf) is None
    assert rows(shelf.database, activations) == 1


def test_the_same_request_with_the_same_key_is_answered_again(shelf: Shelf) -> None:
    base = shelf.active_base()
    first, second = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    request = MoveRequest("key:admin", expected_revision=1, idempotency_key="k1")
    done = promote(shelf, first, request)
    promote(shelf, second)
    assert promote(shelf, first, request) == done
    assert active(shelf) == second


def test_a_rollback_is_repeated_by_its_key_too(shelf: Shelf) -> None:
    base = shelf.active_base()
    for value in (0.1, 0.2, 0.3):
        promote(shelf, shelf.adapter(base, value))
    request = MoveRequest("key:admin", idempotency_key="back")
    assert rollback(shelf, None, request) == rollback(shelf, None, request)
    assert rows(shelf.database, activations) == 5


@pytest.mark.parametrize(
    "other",
    [
        MoveRequest("key:admin", "another reason", idempotency_key="k1"),
        MoveRequest("key:other", idempotency_key="k1"),
        MoveRequest("key:admin", expected_revision=2, idempotency_key="k1"),
    ],
)
def test_a_key_of_another_request_is_a_conflict(shelf: Shelf, other: MoveRequest) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    promote(shelf, version, MoveRequest("key:admin", idempotency_key="k1"))
    with pytest.raises(Conflict, match="Idempotency-Key"):
        promote(shelf, version, other)


def test_rollbacks_go_back_step_by_step_to_the_base(shelf: Shelf) -> None:
    base = shelf.active_base()
    first, second = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    promote(shelf, first)
    promote(shelf, second)
    assert [rollback(shelf).to_version for _ in range(2)] == [first, None]
    with pytest.raises(Conflict, match="nothing was active before"):
        rollback(shelf)


def test_after_a_rollback_a_promotion_goes_on_from_there(shelf: Shelf) -> None:
    base = shelf.active_base()
    first, second, third = (shelf.adapter(base, value) for value in (0.1, 0.2, 0.3))
    promote(shelf, first)
    promote(shelf, second)
    rollback(shelf)
    promote(shelf, third)
    assert rollback(shelf).to_version == first


def test_a_rollback_can_name_a_version_or_the_base(shelf: Shelf) -> None:
    base = shelf.active_base()
    first, second, third = (shelf.adapter(base, value) for value in (0.1, 0.2, 0.3))
    for version in (first, second, third):
        promote(shelf, version)
    assert rollback(shelf, first).to_version == first
    assert rollback(shelf, "base").to_version is None
    assert state(shelf, first) is AdapterState.RETIRED
    with pytest.raises(Conflict, match="already serves without"):
        rollback(shelf, "base")


def test_a_rollback_goes_only_to_what_served_or_passed(shelf: Shelf) -> None:
    base = shelf.active_base()
    promote(shelf, shelf.adapter(base, 0.1))
    candidate = shelf.adapter(base, 0.2, AdapterState.CANDIDATE)
    with pytest.raises(Conflict, match="is candidate"):
        rollback(shelf, candidate)
    with pytest.raises(NotFound):
        rollback(shelf, "a000001-000000000000")


def test_nothing_can_be_rolled_back_without_a_base(shelf: Shelf) -> None:
    with pytest.raises(Conflict, match="no base"):
        rollback(shelf)


def test_a_damaged_adapter_is_marked_and_not_promoted(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    shelf.damage(version)
    for _ in range(2):
        with pytest.raises(Conflict, match=f"adaptide adapters verify {version}"):
            promote(shelf, version)
    assert state(shelf, version) is AdapterState.CORRUPT
    assert active(shelf) is None


def test_a_repaired_adapter_is_readmitted(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    good = shelf.damage(version)
    with pytest.raises(Conflict):
        promote(shelf, version)
    shelf.weights_of(version).write_bytes(good)
    integrity.verify(shelf.database, shelf.clock, shelf.artifacts, version, actor="cli")
    assert state(shelf, version) is AdapterState.CANDIDATE
    assert promote(shelf, version).to_version == version


def test_the_active_adapter_is_active_again_when_it_was_repaired(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    promote(shelf, version)
    good = shelf.damage(version)
    with pytest.raises(Conflict):
        integrity.verify(shelf.database, shelf.clock, shelf.artifacts, version, actor="cli")
    shelf.weights_of(version).write_bytes(good)
    integrity.verify(shelf.database, shelf.clock, shelf.artifacts, version, actor="cli")
    assert state(shelf, version) is AdapterState.ACTIVE


def test_a_corrupt_active_adapter_stays_marked_when_it_is_left(shelf: Shelf) -> None:
    base = shelf.active_base()
    first, second = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    promote(shelf, first)
    promote(shelf, second)
    integrity.mark_corrupt(shelf.database, shelf.clock, second, "a test says so", actor="service")
    assert rollback(shelf).to_version == first
    assert state(shelf, second) is AdapterState.CORRUPT


def test_a_rollback_passes_over_what_turns_out_to_be_damaged(shelf: Shelf) -> None:
    base = shelf.active_base()
    first, second, third = (shelf.adapter(base, value) for value in (0.1, 0.2, 0.3))
    for version in (first, second, third):
        promote(shelf, version)
    shelf.damage(second)
    assert rollback(shelf).to_version == first
    assert state(shelf, second) is AdapterState.CORRUPT


def test_a_missing_folder_marks_nothing(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    shelf.weights_of(version).parent.rename(shelf.folder / "away")
    with pytest.raises(Conflict, match="is not there"):
        promote(shelf, version)
    assert state(shelf, version) is AdapterState.PASSED


def test_a_damaged_base_is_not_blamed_on_the_adapter(shelf: Shelf) -> None:
    base = shelf.active_base()
    version = shelf.adapter(base, 0.1)
    (shelf.artifacts.root / "bases" / base / "model" / "config.json").write_text("{}")
    with pytest.raises(Conflict, match="base"):
        promote(shelf, version)
    assert state(shelf, version) is AdapterState.PASSED


def test_a_new_base_retires_the_adapter_of_the_old_one(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(0.5), 0.1)
    promote(shelf, version)
    new = shelf.base(0.75)
    first = shelf.adapter(new, 0.2)
    done = service.activate_base(shelf.database, shelf.clock, new, actor="cli", adapter_version=first)
    assert (done.from_version, done.to_version, done.revision) == (version, first, 3)
    assert state(shelf, version) is AdapterState.RETIRED
    with pytest.raises(Conflict, match="nothing was active before"):
        rollback(shelf)


def test_a_base_cannot_be_activated_with_anothers_adapter(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(0.5), 0.1)
    with pytest.raises(Conflict, match="was made for base"):
        service.activate_base(shelf.database, shelf.clock, shelf.base(0.75), actor="cli", adapter_version=version)
    with pytest.raises(NotFound):
        service.activate_base(shelf.database, shelf.clock, "b-0000000000000000", actor="cli")


def test_a_base_is_registered_once(shelf: Shelf) -> None:
    made = shelf.publish_base()
    for _ in range(2):
        service.register_base(shelf.database, shelf.clock, NewBase(made.id, made.digest))
    with pytest.raises(Conflict, match="another digest"):
        service.register_base(shelf.database, shelf.clock, NewBase(made.id, "0" * 64))


def test_an_adapter_is_registered_once_and_never_as_active(shelf: Shelf) -> None:
    new = shelf.candidate(shelf.active_base(), 0.1)
    with pytest.raises(Conflict, match="as active"):
        service.register_adapter(shelf.database, shelf.clock, new, AdapterState.ACTIVE)
    service.register_adapter(shelf.database, shelf.clock, new)
    with pytest.raises(Conflict, match="registered already"):
        service.register_adapter(shelf.database, shelf.clock, new)
    orphan = NewAdapter("a000001-000000000000", "b-0000000000000000", "0" * 64, "peso")
    with pytest.raises(NotFound, match="base build"):
        service.register_adapter(shelf.database, shelf.clock, orphan)


def test_adapters_are_paged_newest_first(shelf: Shelf) -> None:
    base = shelf.active_base()
    made = {shelf.adapter(base, value) for value in (0.1, 0.2, 0.3)}
    first = service.read_registry(shelf.database, limit=2)
    second = service.read_registry(shelf.database, limit=2, before=first.next_before)
    assert [len(first.adapters), len(second.adapters), second.next_before] == [2, 1, None]
    assert {adapter.adapter_version for adapter in first.adapters + second.adapters} == made


@pytest.mark.timeout(120)
def test_of_two_promotions_that_race_exactly_one_wins(shelf: Shelf) -> None:
    base = shelf.active_base()
    versions = [shelf.adapter(base, value) for value in (0.1, 0.2)]
    for _ in range(50):
        revision = service.read_registry(shelf.database).pointer.revision
        with ThreadPoolExecutor(2) as pool:
            outcomes = sorted(pool.map(lambda version, at=revision: _contend(shelf, version, at), versions))
        assert outcomes == ["412", "won"]
        rollback(shelf, "base")
    assert rows(shelf.database, activations) == rows(shelf.database, audit_log) == 101
    with shelf.database.read() as connection:
        revisions = [row.revision for row in repository.activations_of_base(connection, base)]
    assert revisions == list(range(1, 102))


def _contend(shelf: Shelf, version: str, revision: int) -> str:
    try:
        promote(shelf, version, MoveRequest("key:admin", expected_revision=revision))
    except PreconditionFailed:
        return "412"
    return "won"


def test_twins_of_one_request_move_the_pointer_once(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    request = MoveRequest("key:admin", expected_revision=1, idempotency_key="twin")
    done: list[Activation] = []
    threads = [threading.Thread(target=lambda: done.append(promote(shelf, version, request))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 6
    assert len(set(done)) == 1
    assert rows(shelf.database, activations) == 2
