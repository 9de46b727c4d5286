"""A candidate is held beside the active model while it is on trial; whatever goes wrong with it, control goes on."""

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from service.adapters import service as adapters
from service.adapters.activation import Activation
from service.adapters.moves import MoveRequest
from service.kit.db import Database
from service.trials import service as trials
from service.trials.following import FIRST_RETRY_S, TrialFollower
from service.trials.service import Wanted
from service.trials.states import Deed, EndReason, Kind
from tests.adapters.engines import SumEngine
from tests.adapters.test_activation import ASK, TRIE, Stopwatch
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock

ADMIN = MoveRequest("key:admin")


class Replica:
    """What one process has of both, without its threads: `look` is what a poll does."""

    def __init__(self, shelf: Shelf, stopwatch: Stopwatch) -> None:
        self.engine, interval = SumEngine(), timedelta(seconds=60)
        database, clock = shelf.database, shelf.clock
        self.activation = Activation(database, clock, shelf.artifacts, self.engine, interval, monotonic=stopwatch)
        self.no_second: str | None = None
        self.trial = TrialFollower(
            database,
            clock,
            self.activation.load_beside,
            interval,
            no_second=lambda: self.no_second,
            monotonic=stopwatch,
        )

    def look(self) -> None:
        self.activation.refresh()
        self.trial.refresh()

    @property
    def holds(self) -> str | None:
        """The candidate that a batch would be given; nobody is sent to it unless it is live."""
        with self.trial.lease_candidate() as model:
            version = None if model is None else model.adapter_version
        live = self.trial.live()
        assert (live and live.adapter_version) == version == self.trial.status().loaded
        return version

    @property
    def open_models(self) -> int:
        return sum(1 for model in self.engine.models if not model.closed)


@pytest.fixture
def stopwatch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def replica(shelf: Shelf, stopwatch: Stopwatch) -> Iterator[Replica]:
    made = Replica(shelf, stopwatch)
    yield made
    made.trial.stop()
    made.activation.stop()
    assert made.open_models == 0


@pytest.fixture
def candidate(shelf: Shelf, replica: Replica) -> str:
    """Of a base that serves alone."""
    base = shelf.active_base()
    replica.look()
    return shelf.adapter(base, 0.25)


def run(shelf: Shelf, version: str, kind: Kind = Kind.CANARY, share: float = 0.5) -> None:
    trials.run(shelf.database, shelf.clock, shelf.artifacts, Wanted(version, kind, share), ADMIN)


def promote(shelf: Shelf, version: str) -> None:
    adapters.promote(shelf.database, shelf.clock, shelf.artifacts, version, ADMIN)


def test_without_a_trial_nothing_is_held(shelf: Shelf, replica: Replica) -> None:
    replica.look()
    assert replica.trial.live() is None
    shelf.active_base()
    replica.look()
    assert (replica.holds, replica.open_models) == (None, 1)


def test_a_candidate_is_loaded_beside_and_freed_at_the_end(shelf: Shelf, replica: Replica, candidate: str) -> None:
    run(shelf, candidate)
    replica.look()
    assert (replica.holds, replica.open_models) == (candidate, 2)
    assert replica.activation.status().adapter_version is None
    replica.look()
    assert replica.engine.tried == 2
    trials.end(shelf.database, shelf.clock, ADMIN)
    replica.look()
    assert (replica.holds, replica.open_models) == (None, 1)


def test_a_candidate_that_is_lent_is_not_closed_before_its_batch_ends(
    shelf: Shelf, replica: Replica, candidate: str
) -> None:
    run(shelf, candidate)
    replica.look()
    with replica.trial.lease_candidate() as model:
        assert model is not None
        trials.end(shelf.database, shelf.clock, ADMIN)
        replica.look()
        model.generate([ASK], TRIE)
        assert replica.open_models == 2
    assert replica.open_models == 1


def test_another_share_or_kind_loads_nothing(shelf: Shelf, replica: Replica, candidate: str) -> None:
    run(shelf, candidate, Kind.SHADOW, 0.1)
    replica.look()
    run(shelf, candidate, Kind.CANARY, 0.3)
    replica.look()
    live = replica.trial.live()
    assert live is not None
    assert (live.kind, live.share, replica.engine.tried) == (Kind.CANARY, 0.3, 2)


def test_two_replicas_agree_on_every_user(shelf: Shelf, replica: Replica, candidate: str) -> None:
    run(shelf, candidate)
    other = Replica(shelf, Stopwatch())
    for one in (replica, other):
        one.look()
    mine, theirs = replica.trial.live(), other.trial.live()
    assert mine is not None
    assert theirs is not None
    users = [f"u{number}" for number in range(200)]
    assert [mine.arm(user) for user in users] == [theirs.arm(user) for user in users]
    trials.end(shelf.database, shelf.clock, ADMIN)
    other.look()
    assert other.holds is None
    other.trial.stop()
    other.activation.stop()


def test_a_promoted_candidate_is_no_longer_on_trial(shelf: Shelf, replica: Replica, candidate: str) -> None:
    run(shelf, candidate)
    replica.look()
    promote(shelf, candidate)
    replica.look()
    assert (replica.holds, replica.open_models) == (None, 1)
    assert replica.activation.status().adapter_version == candidate


def test_control_may_change_under_a_trial(shelf: Shelf, replica: Replica, candidate: str) -> None:
    run(shelf, candidate)
    replica.look()
    status = replica.activation.status()
    assert status.base_id is not None
    version = shelf.adapter(status.base_id, 0.5)
    promote(shelf, version)
    replica.look()
    assert (replica.activation.status().adapter_version, replica.holds) == (version, candidate)
    adapters.rollback(shelf.database, shelf.clock, shelf.artifacts, ADMIN)
    replica.look()
    assert (replica.activation.status().adapter_version, replica.holds) == (None, candidate)


def test_another_base_ends_it_here_too(shelf: Shelf, replica: Replica, candidate: str) -> None:
    run(shelf, candidate)
    replica.look()
    adapters.activate_base(shelf.database, shelf.clock, shelf.base(0.7), actor="cli")
    replica.look()
    assert (replica.holds, replica.open_models) == (None, 1)


def test_an_end_that_passes_takes_effect_and_is_written_once(
    shelf: Shelf, replica: Replica, candidate: str, clock: SetClock
) -> None:
    until = clock() + timedelta(minutes=1)
    trials.run(shelf.database, clock, shelf.artifacts, Wanted(candidate, Kind.CANARY, 0.5, until), ADMIN)
    replica.look()
    clock.advance(minutes=1)
    for _ in range(2):
        replica.look()
    assert replica.holds is None
    [end, _] = trials.read(shelf.database).history
    assert (end.deed, end.because, end.actor) == (Deed.END, EndReason.EXPIRED, "service")


def test_a_candidate_that_is_damaged_on_disk_ends_the_trial(shelf: Shelf, replica: Replica, candidate: str) -> None:
    run(shelf, candidate)
    shelf.damage(candidate)
    for _ in range(2):
        replica.look()
    assert (replica.holds, replica.open_models) == (None, 1)
    assert trials.read(shelf.database).history[0].because is EndReason.CORRUPT
    assert replica.activation.status().degraded is None


def test_a_candidate_that_does_not_load_is_said_and_tried_again_later(
    shelf: Shelf, replica: Replica, candidate: str, stopwatch: Stopwatch
) -> None:
    replica.engine.broken = {candidate}
    run(shelf, candidate)
    for _ in range(3):
        replica.look()
    assert (replica.holds, replica.engine.tried) == (None, 2)
    assert "RuntimeError" in (replica.trial.status().trouble or "")
    assert replica.activation.status().degraded is None
    replica.engine.broken.clear()
    stopwatch.now += FIRST_RETRY_S
    replica.look()
    assert replica.holds == candidate
    assert replica.trial.status().trouble is None


def test_one_that_fails_at_answering_is_dropped_until_the_trial_is_changed(
    shelf: Shelf, replica: Replica, candidate: str, stopwatch: Stopwatch
) -> None:
    run(shelf, candidate)
    replica.look()
    replica.trial.failed(RuntimeError("out of memory"))
    assert replica.trial.live() is None
    stopwatch.now += 1000
    replica.look()
    assert (replica.holds, replica.open_models) == (None, 1)
    assert "failed at answering" in (replica.trial.status().trouble or "")
    run(shelf, candidate, share=0.4)
    replica.look()
    assert replica.holds == candidate
    assert replica.trial.status().trouble is None


def test_an_engine_without_room_for_a_second_model_says_so(shelf: Shelf, replica: Replica, candidate: str) -> None:
    replica.no_second = "both slots are needed"
    run(shelf, candidate)
    replica.look()
    assert (replica.holds, replica.trial.status().trouble, replica.engine.tried) == (None, "both slots are needed", 1)


def test_while_the_store_is_away_users_keep_their_arm_until_its_end(
    shelf: Shelf, replica: Replica, candidate: str, database: Database, clock: SetClock
) -> None:
    until = clock() + timedelta(hours=1)
    trials.run(database, clock, shelf.artifacts, Wanted(candidate, Kind.CANARY, 0.5, until), ADMIN)
    replica.look()
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    replica.trial._database = away
    replica.trial.refresh()
    assert replica.holds == candidate
    clock.advance(hours=1)
    replica.trial.refresh()  # that it ends then was known before
    assert replica.holds is None
    replica.trial._database = database
    away.close()


def test_a_swap_that_is_under_way_is_waited_for(shelf: Shelf, replica: Replica, candidate: str) -> None:
    run(shelf, candidate)
    status = replica.activation.status()
    assert status.base_id is not None
    version = shelf.adapter(status.base_id, 0.5)
    promote(shelf, version)
    replica.engine.hold.clear()
    threads = [threading.Thread(target=look) for look in (replica.activation.refresh, replica.trial.refresh)]
    for thread in threads:
        thread.start()
    replica.engine.hold.set()
    for thread in threads:
        thread.join(10)
    assert (replica.activation.status().adapter_version, replica.holds) == (version, candidate)
