"""Scenario 10: whatever is asked of the registry in whatever order, it does what a model of plain values does."""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.adapters import garbage, integrity, repository, service, states
from service.adapters.moves import Activation, MoveRequest
from service.adapters.repository import NewAdapter
from service.adapters.states import Action, AdapterState, Move
from service.errors import AdaptideError
from service.kit import leases
from service.kit.db import Database
from service.settings import Settings
from service.windows import service as windows
from service.windows.service import UPDATER_LEASE, Outcome
from service.windows.states import SealedBecause, WindowState
from tests.adapters.tiny import Shelf
from tests.chaos.registry_model import MAY_SERVE, Asked, Base, Moved, Refused, RegistryModel, after
from tests.chaos.scenarios import FULL, sized
from tests.conftest import PostgresStore, SetClock
from tests.windows.streams import write_events

pytestmark = pytest.mark.scenario(10)

GRACE = timedelta(hours=1)
UNKNOWN = "a000001-000000000000"

Opened = Callable[[], Any]
"""A context manager of an empty, migrated Database and a folder."""


class RegistryLife(RuleBasedStateMachine):
    """Every step is done by the registry and by the model; then answers, pointer, states and rows are the same."""

    opened: ClassVar[Opened]
    seen: ClassVar[Counter[str]]
    published: ClassVar[dict[tuple[str, int, int | None], tuple[NewAdapter, dict[str, bytes]]]] = {}
    """What other walks have published: writing it again needs none of the waits for the disk."""

    @initialize()
    def begin(self) -> None:
        """A base that serves, and a few adapters that may."""
        self._context = self.opened()
        database, folder = self._context.__enter__()
        self.clock = SetClock()
        self.shelf = Shelf(folder, database, self.clock)
        self.model = RegistryModel()
        self.good: dict[str, bytes] = {}
        self.requests = 0
        self.audit_ids: dict[int, str] = {}
        self.rows: dict[str, list[str]] = {"activations": [], "audit_log": []}
        self.made = 0
        with database.write() as connection:
            lease = leases.acquire(connection, UPDATER_LEASE, "updater", timedelta(days=1000))
        assert lease is not None
        self.lease = lease
        self.settings = Settings(home=folder, window_attempts=10_000)
        self._new_base(activated=True)
        for _ in range(4):
            self._new_adapter("passed")

    def teardown(self) -> None:
        if hasattr(self, "_context"):
            self._context.__exit__(None, None, None)

    # What comes in

    @precondition(lambda self: len(self.model.bases) < 4)
    @rule(activated=st.booleans())
    def register_base(self, activated: bool) -> None:
        self._new_base(activated=activated)

    @rule(state=st.sampled_from(["candidate", "passed", "passed", "refused", "active"]))
    def register(self, state: str) -> None:
        self._new_adapter(state)

    @rule(data=st.data(), alone=st.booleans())
    def activate_base(self, data: st.DataObject, alone: bool) -> None:
        base = data.draw(st.sampled_from([*self.model.bases, "b-0000000000000000"]))
        version = None if alone else self._any_version(data)
        self._both(self._activate(base, version), lambda: self.model.activate(base, version))

    # Admins

    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        self._ask("promote", self._any_version(data), self._conditions(data))

    @precondition(lambda self: self._promotable())
    @rule(data=st.data())
    def promote_what_may_serve(self, data: st.DataObject) -> None:
        self._ask("promote", data.draw(st.sampled_from(self._promotable())), self._conditions(data))

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        self._ask("rollback", None, self._conditions(data))

    @rule(data=st.data())
    def roll_back_to(self, data: st.DataObject) -> None:
        target = data.draw(st.sampled_from([*self.model.adapters, "base", UNKNOWN]))
        self._ask("rollback", target, self._conditions(data))

    @precondition(lambda self: self.model.answered)
    @rule(data=st.data(), altered=st.sampled_from([None, None, "actor", "reason", "revision", "target"]))
    def ask_again(self, data: st.DataObject, altered: str | None) -> None:
        """The same request with the same key, or another one with it."""
        (what, target), asked = self.model.answered[data.draw(st.sampled_from(sorted(self.model.answered)))][0]
        if altered == "target":
            target = data.draw(st.sampled_from(sorted(self.model.adapters)))
        elif altered is not None:
            asked = asked._replace(**{altered: {"actor": "key:c", "reason": "another", "revision": 99}[altered]})
        self._ask(what, target, asked)

    @precondition(lambda self: self.model.base is not None)
    @rule()
    def promote_and_roll_back(self) -> None:
        """A rollback after a promotion is where it was before, unless that may not serve any more."""
        model = self.model
        base, prior = model.base, model.version
        assert base is not None
        new = self._candidate(base)
        service.register_adapter(self.shelf.database, self.clock, new, AdapterState.PASSED)
        model.register(new.adapter_version, base, "passed")
        good = prior is None or (model.adapters[prior].state == "active" and prior not in model.damaged)
        self._ask("promote", new.adapter_version, Asked())
        self._ask("rollback", None, Asked())
        if good:
            assert model.version == prior
            self.seen["rollbacks_after_a_promotion"] += 1

    # Files

    @precondition(lambda self: self._on_disk())
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self._on_disk()))
        if version not in self.model.damaged:
            self.good[version] = self.shelf.damage(version)
            self.model.damaged.add(version)

    @precondition(lambda self: any(version in self.model.damaged for version in self._on_disk()))
    @rule(data=st.data())
    def repair(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from([v for v in self._on_disk() if v in self.model.damaged]))
        self.shelf.weights_of(version).write_bytes(self.good[version])
        self.model.damaged.remove(version)

    @rule(data=st.data())
    def verify(self, data: st.DataObject) -> None:
        version, shelf = self._any_version(data), self.shelf

        def verified() -> None:
            integrity.verify(shelf.database, self.clock, shelf.artifacts, version, actor="cli")

        self._both(verified, lambda: self.model.verify(version))

    @rule(data=st.data())
    def mark_corrupt(self, data: st.DataObject) -> None:
        version = self._any_version(data)
        integrity.mark_corrupt(self.shelf.database, self.clock, version, "a replica says so", actor="service")
        self.model.mark(version)

    @rule(keep=st.integers(1, 3), minutes=st.sampled_from([5, 70]))
    def collect(self, keep: int, minutes: int) -> None:
        self.clock.advance(minutes=minutes)
        self.model.now += minutes
        garbage.collect(
            self.shelf.database,
            self.clock,
            self.shelf.artifacts,
            keep=keep,
            grace=GRACE,
            attempts=self.settings.window_attempts,
            actor="cli",
            leftovers=False,
        )
        self.model.collect(keep, GRACE.total_seconds() / 60)
        self.model.damaged &= set(self._on_disk())

    # The updater

    @precondition(lambda self: self.model.base is not None)
    @rule()
    def claim(self) -> None:
        database = self.shelf.database
        if self.model.window is None:
            write_events(database, 1)
            assert windows.seal(database, self.clock, self.settings, SealedBecause.MANUAL) is not None
        window = windows.claim(database, self.clock, self.settings, self.lease)
        assert window is not None
        self.model.claim(window.window_id)

    @precondition(lambda self: self.model.window is not None)
    @rule(
        promoted=st.sampled_from([True, True, False]),
        compared=st.booleans(),
        damaged=st.sampled_from([False, False, True]),
    )
    def conclude(self, promoted: bool, compared: bool, damaged: bool) -> None:
        window = self.model.window
        assert window is not None
        new = self._candidate(window.base, window.number)
        version = new.adapter_version
        if damaged:
            self.good[version] = self.shelf.damage(version)
            self.model.damaged.add(version)
        outcome = Outcome(WindowState.PROMOTED if promoted else WindowState.REFUSED, candidate=new)

        def concluded() -> object:
            return windows.conclude(
                self.shelf.database,
                self.clock,
                self.shelf.artifacts,
                window.number,
                self.lease,
                outcome,
                expected_revision=window.revision if compared else None,
            )

        answer = self._both(
            concluded,
            lambda: self.model.conclude(version, promoted=promoted, compared=compared, damaged=damaged),
        )
        self.seen["windows_that_moved" if isinstance(answer, Moved) else f"windows_{answer or 'refused'}"] += 1

    @precondition(lambda self: self.model.base is not None)
    @rule(promoted=st.sampled_from([True, True, False]), moved=st.booleans())
    def update(self, promoted: bool, moved: bool) -> None:
        """A whole window, perhaps with an admin in between."""
        self.claim()
        if moved:
            self._ask("rollback", "base", Asked())
        self.conclude(promoted, True, False)

    # What holds after each step

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        model = self.model
        self.seen["steps"] += 1
        with self.shelf.database.read() as connection:
            pointer = repository.read_pointer(connection)
            adapters = {a.adapter_version: a.state.value for a in repository.list_adapters(connection, limit=None)}
            gone = {base.base_id: base.collected_at is not None for base in repository.list_bases(connection)}
            rows = {
                "activations": connection.exec_driver_sql("SELECT * FROM activations ORDER BY revision")
                .mappings()
                .all(),
                "audit_log": connection.exec_driver_sql("SELECT * FROM audit_log ORDER BY audit_id").mappings().all(),
            }
        assert (pointer.revision, pointer.base_id, pointer.adapter_version) == (
            model.revision,
            model.base,
            model.version,
        )
        assert adapters == {version: adapter.state for version, adapter in model.adapters.items()}
        assert gone == {base_id: base.gone for base_id, base in model.bases.items()}
        active = [version for version, state in adapters.items() if state == "active"]
        assert active in ([], [model.version])
        for name, found in rows.items():
            written = [repr(tuple(row.values())) for row in found]
            assert written[: len(self.rows[name])] == self.rows[name], f"{name} was rewritten"
            self.rows[name] = written
        assert [_moved(row) for row in rows["activations"]] == model.history
        assert [
            (row["action"], row["subject"])
            for row in rows["audit_log"]
            if row["action"].startswith(("adapter.", "base."))
        ] == model.audit
        moves = [row for row in rows["audit_log"] if row["action"].removeprefix("adapter.") in set(Action)]
        assert [row["audit_id"] for row in moves] == [row["audit_id"] for row in rows["activations"]]

    # How

    def _ask(self, what: str, target: str | None, asked: Asked) -> None:
        shelf = self.shelf
        request = MoveRequest(asked.actor, asked.reason, asked.revision, asked.key)
        self.requests += 1

        def ours() -> object:
            if what == "promote":
                assert target is not None
                return service.promote(shelf.database, self.clock, shelf.artifacts, target, request)
            return service.rollback(shelf.database, self.clock, shelf.artifacts, request, target)

        def models() -> object:
            if what == "promote":
                assert target is not None
                return self.model.promote(target, asked)
            return self.model.roll_back(target, asked)

        before = len(self.model.history)
        answer = self._both(ours, models)
        if isinstance(answer, Moved):
            self.seen["moves" if len(self.model.history) > before else "answered_again"] += 1

    def _both(self, ours: Callable[[], object], models: Callable[[], object]) -> object:
        try:
            expected = models()
        except Refused as refused:
            expected = str(refused)
            self.seen[expected] += 1
        try:
            got = ours()
        except AdaptideError as error:
            got = error.slug
        if isinstance(got, Activation):
            assert isinstance(expected, Moved), (got, expected)
            assert (got.from_version, got.to_version, got.revision) == (expected.left, expected.to, expected.revision)
            assert self.audit_ids.setdefault(got.revision, got.audit_id) == got.audit_id
        else:
            assert got == expected
        return expected

    def _new_base(self, *, activated: bool) -> None:
        base = self.shelf.base(0.5 + 0.125 * len(self.model.bases))
        self.model.bases[base] = Base(self.model.now)
        if activated:
            self._both(self._activate(base, None), lambda: self.model.activate(base, None))

    def _new_adapter(self, state: str) -> None:
        """Mostly of the base that serves; registered twice, since the second time it is known."""
        here = [base for base, found in self.model.bases.items() if not found.gone]
        base = self.model.base if self.model.base is not None and self.made % 4 else here[-1]
        new = self._candidate(base)
        for _ in range(2):
            self._both(
                lambda: service.register_adapter(self.shelf.database, self.clock, new, AdapterState(state)),
                lambda: self.model.register(new.adapter_version, base, state),
            )

    def _activate(self, base: str, version: str | None) -> Callable[[], object]:
        return lambda: service.activate_base(
            self.shelf.database, self.clock, base, actor="cli", adapter_version=version
        )

    def _candidate(self, base: str, window_id: int | None = None) -> NewAdapter:
        self.made += 1
        known = self.published.get(key := (base, self.made, window_id))
        if known is None:
            new = self.shelf.candidate(base, 0.1 + self.made / 10_000, window_id)
            folder = self.shelf.weights_of(new.adapter_version).parent
            self.published[key] = new, {path.name: path.read_bytes() for path in folder.iterdir()}
            return new
        folder = self.shelf.weights_of(known[0].adapter_version).parent
        folder.mkdir(parents=True)
        for name, content in known[1].items():
            (folder / name).write_bytes(content)
        return known[0]

    def _any_version(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from([*self.model.adapters, UNKNOWN]))

    def _conditions(self, data: st.DataObject) -> Asked:
        now = self.model.revision
        return Asked(
            actor=data.draw(st.sampled_from(["key:a", "key:a", "key:b"])),
            reason=data.draw(st.sampled_from([None, "why"])),
            revision=data.draw(st.sampled_from([None, None, now, now, now, max(0, now - 1), now + 1])),
            key=data.draw(st.sampled_from([None, f"k{self.requests}", f"k{self.requests}", "k"])),
        )

    def _promotable(self) -> list[str]:
        """Of the base that serves."""
        found = self.model.adapters.items()
        return [v for v, adapter in found if adapter.base == self.model.base and adapter.state in MAY_SERVE]

    def _on_disk(self) -> list[str]:
        return [version for version, adapter in self.model.adapters.items() if adapter.state != "collected"]


def _unflushed(connection: Any, record: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")


def _moved(row: Any) -> Moved:
    names = ("revision", "action", "base_id", "from_version", "to_version", "window_id", "actor", "reason")
    return Moved(*(row[name] for name in names), row["idempotency_key"])


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def opened(request: pytest.FixtureRequest) -> Opened:
    """A store of its own for each walk."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("_sqlite_template")

        @contextmanager
        def on_sqlite() -> Iterator[tuple[Database, Path]]:
            with TemporaryDirectory() as folder:
                shutil.copy(template, Path(folder) / "store.db")
                database = Database(f"sqlite:///{folder}/store.db")
                sa.event.listen(database.engine, "connect", _unflushed)  # no power is cut here
                try:
                    yield database, Path(folder)
                finally:
                    database.close()

        return on_sqlite
    store: PostgresStore = request.getfixturevalue("_postgres")

    @contextmanager
    def on_postgres() -> Iterator[tuple[Database, Path]]:
        database = Database(store.url)
        try:
            with TemporaryDirectory() as folder:
                yield database, Path(folder)
        finally:
            database.close()
            store.reset()

    return on_postgres


@pytest.mark.timeout(4 * 3600 if FULL else 300)
def test_a_random_walk_over_the_registry_does_what_the_model_does(
    opened: Opened, request: pytest.FixtureRequest, figures: dict[str, Any]
) -> None:
    on_sqlite = "sqlite" in request.node.callspec.id
    walks = sized(30, 2000) if on_sqlite else sized(6, 200)
    RegistryLife.opened, RegistryLife.seen = staticmethod(opened), Counter()  # type: ignore[assignment]  # called bare
    run_state_machine_as_test(
        RegistryLife,
        settings=settings(
            max_examples=walks,
            stateful_step_count=sized(25, 50),
            derandomize=not FULL,
            database=None,
            phases=[Phase.generate],  # making a failure smaller takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
    figures |= {"walks": walks, **RegistryLife.seen}
    assert RegistryLife.seen["rollbacks_after_a_promotion"] > walks / 10


def test_what_a_rollback_goes_back_to_is_what_the_model_says(figures: dict[str, Any]) -> None:
    """The pure parts, at full size always: 2,000 histories of 50 moves."""
    moves = 0
    for seed in range(2000):
        draw = random.Random(seed)
        history, served = [Move(Action.BASE, None)], [None]
        versions = [f"v{number}" for number in range(draw.randint(1, 6))]
        for _ in range(50):
            action = draw.choices([*Action], [1, 8, 8, 4])[0]
            before = list(served)
            marked = {version for version in versions if draw.random() < 0.2}
            found, to = states.previous(before, lambda version, marked=marked: version not in marked)
            reachable = [v for v in before[:-1] if v != before[-1] and v not in marked]
            assert (found, to) == ((True, reachable[-1]) if reachable else (False, None)), (seed, history)
            if action is not Action.ROLLBACK or draw.random() < 0.3 or not found:
                to = (
                    draw.choice([*versions, None])
                    if action in (Action.BASE, Action.ROLLBACK)
                    else draw.choice(versions)
                )
            served = after(served, action.value, to)
            history.append(Move(action, to))
            assert states.served_stack(history) == served, (seed, history)
            if action in (Action.PROMOTE, Action.WINDOW) and to != before[-1]:
                back = Move(Action.ROLLBACK, before[-1])
                assert states.previous(served, lambda version: True) == (True, before[-1]), (seed, history)
                assert states.served_stack([*history, back])[-1] == before[-1]
            moves += 1
    figures |= {"moves": moves}
