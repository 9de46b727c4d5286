"""Whatever is published, promoted, rolled back, served and collected in whatever order: nothing needed is ever gone."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.adapters import garbage, repository, service
from service.adapters import states as adapter_states
from service.adapters.artifacts import ADAPTERS, BASES
from service.adapters.garbage import Collected
from service.adapters.moves import MoveRequest
from service.adapters.states import AdapterState, Move
from service.errors import AdaptideError, Conflict
from service.kit import migrate
from service.kit.db import Database
from service.replicas import repository as replica_rows
from service.replicas.repository import Replica
from service.windows.tables import windows
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock

ADMIN = MoveRequest("key:admin")
GRACE = timedelta(hours=1)


def collect(shelf: Shelf, keep: int = 1, **changes: bool) -> Collected:
    return garbage.collect(
        shelf.database, shelf.clock, shelf.artifacts, keep=keep, grace=GRACE, attempts=3, actor="cli", **changes
    )


def promote(shelf: Shelf, version: str) -> None:
    service.promote(shelf.database, shelf.clock, shelf.artifacts, version, ADMIN)


def rollback(shelf: Shelf, to_version: str | None = None) -> None:
    service.rollback(shelf.database, shelf.clock, shelf.artifacts, ADMIN, to_version)


def state(shelf: Shelf, version: str) -> AdapterState:
    return service.read_adapter(shelf.database, version).adapter.state


def beat(shelf: Shelf, replica_id: str, base_id: str | None, version: str | None, wanted: str | None = None) -> None:
    now = shelf.clock()
    row = Replica(replica_id, "host", 1, now, now, 1, base_id, version, base_id, wanted, None)
    with shelf.database.write() as connection:
        replica_rows.write(connection, row)


def there(shelf: Shelf) -> set[str]:
    return {*shelf.artifacts.names(ADAPTERS), *shelf.artifacts.names(BASES)}


def age(folder: Path, clock: SetClock, by: timedelta) -> None:
    """Make everything in a folder as old as `by` before the test's now."""
    when = (clock() - by).timestamp()
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (when, when))


@pytest.fixture
def versions(shelf: Shelf, clock: SetClock) -> list[str]:
    """Five adapters of the active base, promoted one after the other, an hour and more ago."""
    base = shelf.active_base()
    made = []
    for n in range(5):
        made.append(shelf.adapter(base, 0.1 + n / 100))
        promote(shelf, made[-1])
        clock.advance(seconds=1)
    clock.advance(hours=2)
    return made


def test_the_active_one_the_newest_and_those_to_roll_back_to_are_kept(shelf: Shelf, versions: list[str]) -> None:
    done = collect(shelf, keep=2)
    assert done.adapters == sorted(versions[:2])
    assert done.choice.kept_adapters == {versions[4]: "active", versions[3]: "rollback", versions[2]: "rollback"}
    assert done.bytes > 1000
    assert set(shelf.artifacts.names(ADAPTERS)) == set(versions[2:])
    assert [state(shelf, version) for version in versions[:3]] == ["collected", "collected", "retired"]
    rollback(shelf)
    rollback(shelf)
    with pytest.raises(Conflict, match="garbage collection"):
        promote(shelf, versions[0])
    with pytest.raises(Conflict, match="garbage collection"):
        rollback(shelf, versions[1])
    rollback(shelf)  # past the collected ones, to the base alone
    assert service.read_registry(shelf.database).pointer.adapter_version is None


def test_a_dry_run_says_the_same_and_touches_nothing(shelf: Shelf, versions: list[str]) -> None:
    would = collect(shelf, keep=2, dry_run=True)
    assert set(shelf.artifacts.names(ADAPTERS)) == set(versions)
    assert {state(shelf, version) for version in versions} == {"active", "retired"}
    did = collect(shelf, keep=2)
    assert (would.adapters, would.bases, would.bytes) == (did.adapters, did.bases, did.bytes)


def test_what_a_replica_serves_or_loads_is_kept(shelf: Shelf, versions: list[str]) -> None:
    base = service.read_registry(shelf.database).pointer.base_id
    beat(shelf, "r1", base, versions[0], wanted=versions[1])
    done = collect(shelf)
    assert done.adapters == [versions[2]]
    assert done.choice.kept_adapters[versions[0]] == "replica host 1"
    with shelf.database.write() as connection:
        replica_rows.delete(connection, "r1")
    assert collect(shelf).adapters == sorted(versions[:2])


def test_what_an_unfinished_window_needs_is_kept(shelf: Shelf, versions: list[str]) -> None:
    row = {
        "after_seq": 0, "through_seq": 5, "events": 5, "state": "failed", "sealed_at": shelf.clock(),
        "sealed_because": "age", "attempts": 1, "incumbent_version": versions[1],
    }  # fmt: skip
    with shelf.database.write() as connection:
        connection.execute(windows.insert().values(**row))
    assert collect(shelf).adapters == sorted([versions[0], versions[2]])
    with shelf.database.write() as connection:
        connection.execute(windows.update().values(attempts=3))  # given up
    assert collect(shelf).adapters == [versions[1]]


def test_a_base_goes_when_nothing_of_it_is_left(shelf: Shelf, versions: list[str], clock: SetClock) -> None:
    old = service.read_registry(shelf.database).pointer.base_id
    assert old is not None
    new = shelf.active_base(0.75)
    promote(shelf, shelf.adapter(new, 0.3))
    clock.advance(hours=2)
    done = collect(shelf)
    assert done.bases == [old]
    assert there(shelf) == {new, *done.choice.kept_adapters}
    with pytest.raises(Conflict, match="garbage collection"):
        service.activate_base(shelf.database, clock, old, actor="test")
    with pytest.raises(Conflict, match="ADAPTIDE_SEED"):
        shelf.base()


def test_what_is_young_or_on_its_way_is_left_alone(shelf: Shelf, versions: list[str], clock: SetClock) -> None:
    base = service.read_registry(shelf.database).pointer.base_id
    assert base is not None
    young = [shelf.adapter(base, 0.5, AdapterState.REFUSED)]
    on_its_way, forgotten = shelf.candidate(base, 0.6), shelf.candidate(base, 0.7)
    age(shelf.artifacts.root / ADAPTERS / on_its_way.adapter_version, clock, timedelta(minutes=50))
    age(shelf.artifacts.root / ADAPTERS / forgotten.adapter_version, clock, timedelta(minutes=70))
    done = collect(shelf, keep=9)
    assert (done.adapters, done.leftovers) == ([], [forgotten.adapter_version])
    assert {young[0], on_its_way.adapter_version} <= there(shelf)
    clock.advance(hours=2)
    done = collect(shelf, keep=9, leftovers=False)
    assert (done.adapters, done.leftovers) == (young, [])
    assert on_its_way.adapter_version in there(shelf)


def test_publishing_again_keeps_a_leftover_from_being_collected(shelf: Shelf, clock: SetClock) -> None:
    base = shelf.active_base()
    made = shelf.candidate(base, 0.6)
    folder = shelf.artifacts.root / ADAPTERS / made.adapter_version
    age(folder, clock, timedelta(days=2))
    clock.now = clock.now.__class__.now(clock.now.tzinfo)  # the file system's clock is the real one
    assert shelf.candidate(base, 0.6).adapter_version == made.adapter_version
    assert collect(shelf).leftovers == []


def test_what_killed_publishers_left_is_cleared_away(shelf: Shelf, clock: SetClock) -> None:
    shelf.active_base()
    killed, running = (shelf.artifacts.root / ADAPTERS / f".staging-{n}" for n in "12")
    for folder, minutes in ((killed, 70), (running, 50)):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"w")
        age(folder, clock, timedelta(minutes=minutes))
    (shelf.artifacts.root / ADAPTERS / "notes.txt").write_text("an operator's own file")
    assert collect(shelf).staging == 1
    assert (killed.exists(), running.exists()) == (False, True)
    assert (shelf.artifacts.root / ADAPTERS / "notes.txt").exists()


def test_a_collection_that_was_cut_off_is_finished_by_the_next(
    shelf: Shelf, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shelf.artifacts, "remove", lambda room, name: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(shelf)
    assert set(shelf.artifacts.names(ADAPTERS)) == set(versions), "nothing was deleted yet"
    with pytest.raises(Conflict, match="garbage collection"):
        promote(shelf, versions[0])
    assert collect(shelf).adapters == sorted(versions[:3])


def test_a_promotion_that_races_a_collection_either_wins_or_is_refused(
    shelf: Shelf, versions: list[str], clock: SetClock
) -> None:
    for round_ in range(10):
        target = versions[round_ % 3]
        outcome: list[str] = []

        def ask(target: str = target, outcome: list[str] = outcome) -> None:
            try:
                promote(shelf, target)
                outcome.append("promoted")
            except AdaptideError as error:
                outcome.append(error.detail)

        thread = threading.Thread(target=ask)
        thread.start()
        collect(shelf)
        thread.join()
        if outcome == ["promoted"]:
            assert target in there(shelf)
        else:
            assert target not in there(shelf) or state(shelf, target) is AdapterState.ACTIVE
        active = service.read_registry(shelf.database).pointer.adapter_version
        assert active in there(shelf)
        clock.advance(seconds=1)


@contextmanager
def fresh_shelf(template: Path) -> Iterator[Shelf]:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(template, Path(folder) / "store.db")
        database = Database(f"sqlite:///{folder}/store.db")
        try:
            yield Shelf(Path(folder), database, SetClock())
        finally:
            database.close()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store.db"
    database = Database(f"sqlite:///{path}")
    migrate.upgrade(database)
    database.close()
    return path


class Life(RuleBasedStateMachine):
    """Two bases, adapters in any state, three replicas that follow at their own pace, and collections in between."""

    template: Path

    @initialize(keep=st.integers(1, 2), past=st.lists(st.sampled_from("abc--"), min_size=2, max_size=6))
    def begin(self, keep: int, past: list[str]) -> None:
        """past: after each of so many updates, which replica has followed."""
        self._context = fresh_shelf(self.template)
        self.shelf = self._context.__enter__()
        self.keep = keep
        self.value = 0.1
        self.serving: dict[str, tuple[str | None, str | None]] = {}
        self.published: list[str] = []
        self.base_value = 0.5
        self.base = self.shelf.active_base(self.base_value)
        for name in past:
            self.update()
            if name != "-":
                self.follow(name)

    def teardown(self) -> None:
        if hasattr(self, "_context"):
            self._context.__exit__(None, None, None)

    @rule(kind=st.sampled_from([AdapterState.PASSED, AdapterState.REFUSED, AdapterState.CANDIDATE]))
    def register(self, kind: AdapterState) -> None:
        self.value += 0.001
        self.published.append(self.shelf.adapter(self.base, self.value, kind))

    @rule()
    def update(self) -> None:
        """A window that passes: its adapter is registered and serves."""
        self.register(AdapterState.PASSED)
        self._try(lambda: promote(self.shelf, self.published[-1]))

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.published))
        self._try(lambda: promote(self.shelf, version))

    @rule(data=st.data(), named=st.booleans())
    def roll_back(self, data: st.DataObject, named: bool) -> None:
        target = data.draw(st.sampled_from([*self.published, "base"])) if named else None
        self._try(lambda: rollback(self.shelf, target))

    @rule()
    def install_base(self) -> None:
        if self.base_value > 0.6:
            return
        self.base_value += 0.125
        self.base = self.shelf.active_base(self.base_value)

    @rule(name=st.sampled_from("abc"))
    def follow(self, name: str) -> None:
        pointer = service.read_registry(self.shelf.database).pointer
        self.serving[name] = (pointer.base_id, pointer.adapter_version)
        beat(self.shelf, name, *self.serving[name])

    @rule(name=st.sampled_from("abc"))
    def leave(self, name: str) -> None:
        self.serving.pop(name, None)
        with self.shelf.database.write() as connection:
            replica_rows.delete(connection, name)

    @rule(minutes=st.sampled_from([10, 70, 70]))
    def collect(self, minutes: int) -> None:
        self.shelf.clock.advance(minutes=minutes)  # type: ignore[attr-defined]  # the tests' clock
        before = there(self.shelf)
        done = collect(self.shelf, self.keep)
        assert before - there(self.shelf) == {*done.adapters, *done.bases, *done.leftovers}

    @invariant()
    def nothing_needed_is_gone(self) -> None:
        if not hasattr(self, "shelf"):
            return
        present = there(self.shelf)
        with self.shelf.database.read() as connection:
            pointer = repository.read_pointer(connection)
            rows = {row.adapter_version: row for row in repository.list_adapters(connection, limit=None)}
            assert pointer.base_id is not None
            moves = repository.activations_of_base(connection, pointer.base_id)
        needed = {pointer.base_id, pointer.adapter_version}
        for served in self.serving.values():
            needed |= set(served)
        stack = adapter_states.served_stack([Move(row.action, row.to_version) for row in moves])
        back = [v for v in dict.fromkeys(reversed(stack[:-1])) if v and rows[v].state in adapter_states.RESTORABLE]
        needed |= set(back[: self.keep])
        young = {v for v, row in rows.items() if row.created_at > self.shelf.clock() - GRACE}
        needed |= young | {rows[v].base_id for v in young}
        could = [row for row in rows.values() if row.state in adapter_states.PROMOTABLE | {AdapterState.ACTIVE}]
        needed |= {row.adapter_version for row in could} | {row.base_id for row in could}  # promotable means: is there
        assert needed - {None} <= present
        assert all(row.adapter_version not in needed for row in rows.values() if row.state is AdapterState.COLLECTED)

    def _try(self, move: object) -> None:
        try:
            move()  # type: ignore[operator]
        except Conflict:
            pass


def test_nothing_needed_is_ever_gone(template: Path) -> None:
    Life.template = template
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=20,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # making a failure smaller takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
