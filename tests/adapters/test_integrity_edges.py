"""What a verification says and writes down, of each part of what serves."""

from typing import Any

import pytest

from service.adapters import integrity, repository, service
from service.adapters.artifacts import ArtifactStore, VerifiedAdapter
from service.adapters.repository import Pointer
from service.adapters.states import AdapterState
from service.audit import repository as audit
from service.errors import Conflict, NotFound
from tests.adapters.tiny import Shelf

ACTOR = "key:admin"


def verify(shelf: Shelf, version: str) -> AdapterState:
    found = integrity.verify(shelf.database, shelf.clock, shelf.artifacts, version, actor=ACTOR)
    assert found == service.read_adapter(shelf.database, version).adapter  # what is returned is what is stored
    return found.state


def verify_with_base(shelf: Shelf, version: str | None) -> Pointer:
    return integrity.verify_with_base(shelf.database, shelf.clock, shelf.artifacts, version, actor=ACTOR)


def entries(shelf: Shelf, action: str) -> list[dict[str, Any]]:
    with shelf.database.read() as connection:
        found = audit.page(connection, limit=50, before=None)
    wanted = ("actor", "subject", "details", "created_at")
    return [{name: entry[name] for name in wanted} for entry in found if entry["action"] == action]


def state(shelf: Shelf, version: str) -> AdapterState:
    return service.read_adapter(shelf.database, version).adapter.state


def test_damage_and_repair_are_on_record(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    good = shelf.damage(version)
    with pytest.raises(Conflict, match=f"adaptide adapters verify {version}"):
        verify(shelf, version)
    [entry] = entries(shelf, "adapter.corrupt")
    assert (entry["actor"], entry["subject"], entry["created_at"]) == (ACTOR, version, shelf.clock())
    assert entry["details"]["was"] == "passed"
    assert "adapter_model.safetensors" in entry["details"]["reason"]
    shelf.weights_of(version).write_bytes(good)
    assert verify(shelf, version) is AdapterState.CANDIDATE
    assert entries(shelf, "adapter.readmit") == [
        {"actor": ACTOR, "subject": version, "details": {"now": "candidate"}, "created_at": shelf.clock()}
    ]


def test_what_serves_is_readmitted_as_what_serves(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    service.promote(shelf.database, shelf.clock, shelf.artifacts, version, service.MoveRequest(ACTOR))
    good = shelf.damage(version)
    with pytest.raises(Conflict):
        verify(shelf, version)
    assert state(shelf, version) is AdapterState.CORRUPT
    shelf.weights_of(version).write_bytes(good)
    assert verify(shelf, version) is AdapterState.ACTIVE
    assert entries(shelf, "adapter.readmit")[0]["details"] == {"now": "active"}


def test_a_long_reason_is_cut(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    integrity.mark_corrupt(shelf.database, shelf.clock, version, "x" * 501, actor=ACTOR)
    assert entries(shelf, "adapter.corrupt")[0]["details"]["reason"] == "x" * 500


def test_marking_again_or_what_is_not_there_writes_nothing(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    for name in (version, version, "a000009-000000000000"):
        integrity.mark_corrupt(shelf.database, shelf.clock, name, "damaged", actor=ACTOR)
    assert len(entries(shelf, "adapter.corrupt")) == 1


def test_a_refused_adapter_is_not_marked(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1, AdapterState.REFUSED)
    integrity.mark_corrupt(shelf.database, shelf.clock, version, "damaged", actor=ACTOR)
    assert state(shelf, version) is AdapterState.REFUSED
    assert entries(shelf, "adapter.corrupt") == []


def test_verifying_a_whole_adapter_changes_nothing(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    assert verify(shelf, version) is AdapterState.PASSED
    assert entries(shelf, "adapter.readmit") == entries(shelf, "adapter.corrupt") == []


def test_what_serves_is_verified_with_its_base(shelf: Shelf) -> None:
    base_id = shelf.active_base()
    assert verify_with_base(shelf, None) == Pointer(1, base_id, None)
    version = shelf.adapter(base_id, 0.1)
    service.promote(shelf.database, shelf.clock, shelf.artifacts, version, service.MoveRequest(ACTOR))
    assert verify_with_base(shelf, None) == Pointer(2, base_id, version)


def test_an_adapter_of_another_base_is_verified_with_its_own(shelf: Shelf) -> None:
    other = shelf.base(0.75)
    version = shelf.adapter(other, 0.1)
    shelf.active_base()
    assert verify_with_base(shelf, version) == Pointer(1, other, version)


def test_a_damaged_adapter_is_noticed_beside_its_base(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    shelf.damage(version)
    with pytest.raises(Conflict):
        verify_with_base(shelf, version)
    [entry] = entries(shelf, "adapter.corrupt")
    assert (entry["actor"], entry["subject"]) == (ACTOR, version)


def test_every_byte_of_the_base_counts(shelf: Shelf) -> None:
    base_id = shelf.active_base()
    version = shelf.adapter(base_id, 0.1)
    weights = shelf.artifacts.root / "bases" / base_id / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Conflict, match=base_id):
        verify_with_base(shelf, None)
    with pytest.raises(Conflict, match=base_id):
        verify_with_base(shelf, version)
    assert state(shelf, version) is AdapterState.PASSED  # not to blame for its base


def test_a_base_that_is_not_there_is_a_conflict_and_marks_nothing(shelf: Shelf) -> None:
    base_id = shelf.active_base()
    version = shelf.adapter(base_id, 0.1)
    (shelf.artifacts.root / "bases" / base_id).rename(shelf.folder / "away")
    with pytest.raises(Conflict, match=base_id):
        verify(shelf, version)
    assert state(shelf, version) is AdapterState.PASSED


def test_an_adapter_that_is_not_there_is_a_conflict_and_is_not_marked(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    (shelf.artifacts.root / "adapters" / version).rename(shelf.folder / "away")
    with pytest.raises(Conflict, match="is not there"):
        verify(shelf, version)
    assert state(shelf, version) is AdapterState.PASSED


def test_without_a_base_there_is_nothing_to_verify(shelf: Shelf) -> None:
    with pytest.raises(Conflict, match="adaptide base build"):
        verify_with_base(shelf, None)


def test_what_garbage_collection_removed_is_not_looked_for(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    with shelf.database.write() as connection:
        repository.set_state(connection, version, AdapterState.COLLECTED)
    with pytest.raises(Conflict, match="was removed by garbage collection"):
        verify(shelf, version)
    assert state(shelf, version) is AdapterState.COLLECTED


def test_of_two_that_verify_a_repair_at_once_one_notes_it(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    integrity.mark_corrupt(shelf.database, shelf.clock, version, "damaged", actor=ACTOR)

    class Overtaken(ArtifactStore):
        def verify_adapter(self, *asked: Any) -> VerifiedAdapter:
            found = super().verify_adapter(*asked)
            assert verify(shelf, version) is AdapterState.CANDIDATE  # the other one, which is quicker
            return found

    slower = Overtaken(shelf.artifacts.root)
    found = integrity.verify(shelf.database, shelf.clock, slower, version, actor=ACTOR)
    assert found.state is AdapterState.CANDIDATE
    assert len(entries(shelf, "adapter.readmit")) == 1


@pytest.mark.parametrize("version", ["a000001-000000000000", ""])
def test_what_is_not_registered_is_not_found(shelf: Shelf, version: str) -> None:
    shelf.active_base()
    with pytest.raises(NotFound, match="is not registered"):
        verify(shelf, version)
    with pytest.raises(NotFound):
        verify_with_base(shelf, version)
