"""What is promoted is soon what serves; whatever fails, the last good model goes on, and no user's model is closed."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import numpy as np
import pytest

from service.adapters import integrity, service
from service.adapters.activation import FIRST_RETRY_S, Activation
from service.adapters.moves import MoveRequest
from service.adapters.states import AdapterState
from service.catalog.trie import as_codes, build_trie
from service.errors import ArtifactError, Conflict, NotFound
from service.generation.engine import GenerationRequest, ServedModel
from service.kit.db import Database
from tests.adapters.engines import SumEngine
from tests.adapters.tiny import EARLIER, Shelf, adapter_tensors
from tests.conftest import SetClock

ADMIN = MoveRequest("key:admin")
TRIE = build_trie(as_codes([[1, 2, 3, 4], [5, 6, 7, 8]]))
ASK = GenerationRequest(np.zeros((0, 4), np.int16), 1, np.zeros(0, np.int64))


class Stopwatch:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine() -> SumEngine:
    return SumEngine()


@pytest.fixture
def stopwatch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def activation(shelf: Shelf, engine: SumEngine, stopwatch: Stopwatch) -> Iterator[Activation]:
    made = make(shelf, engine, stopwatch)
    yield made
    made.stop()


def make(
    shelf: Shelf,
    engine: SumEngine,
    stopwatch: Callable[[], float],
    warm: Callable[[ServedModel], None] = lambda model: None,
) -> Activation:
    interval = timedelta(seconds=0.02)
    return Activation(shelf.database, shelf.clock, shelf.artifacts, engine, interval, warm=warm, monotonic=stopwatch)


def promote(shelf: Shelf, version: str) -> None:
    service.promote(shelf.database, shelf.clock, shelf.artifacts, version, ADMIN)


def state(shelf: Shelf, version: str) -> AdapterState:
    return service.read_adapter(shelf.database, version).adapter.state


def test_nothing_serves_before_a_base_is_active(activation: Activation) -> None:
    assert not activation.status().settled
    status = activation.refresh()
    assert (status.settled, status.base_id, status.degraded) == (True, None, None)
    with activation.lease_model() as model:
        assert model is None


def test_the_base_serves_alone_then_with_its_adapter(shelf: Shelf, activation: Activation) -> None:
    base = shelf.active_base()
    status = activation.refresh()
    assert (status.base_id, status.adapter_version, status.revision) == (base, None, 1)
    assert (status.trained_through, status.since) == (EARLIER, shelf.clock())
    version = shelf.adapter(base, 0.25)
    promote(shelf, version)
    status = activation.refresh()
    assert (status.adapter_version, status.revision, status.degraded) == (version, 2, None)
    with activation.lease_model() as model:
        assert model is not None
        scores = model.generate([ASK], TRIE)[0].scores
    assert scores == pytest.approx(sum(t.sum() for t in adapter_tensors(0.25).values()))


def test_nothing_is_loaded_twice(shelf: Shelf, activation: Activation, engine: SumEngine) -> None:
    shelf.active_base()
    for _ in range(3):
        activation.refresh()
    assert len(engine.models) == 1


def test_the_old_model_is_closed_once_and_only_when_its_last_user_has_left(
    shelf: Shelf, activation: Activation, engine: SumEngine
) -> None:
    base = shelf.active_base()
    activation.refresh()
    with activation.lease_model() as first_user:
        with activation.lease_model() as second_user:
            promote(shelf, shelf.adapter(base, 0.1))
            activation.refresh()
            assert first_user is second_user is engine.models[0]
            assert activation.status().adapter_version is not None
        assert engine.models[0].closed == 0
        assert first_user is not None
        first_user.generate([ASK], TRIE)
    assert [model.closed for model in engine.models] == [1, 0]


def test_requests_go_on_while_a_model_loads(shelf: Shelf, activation: Activation, engine: SumEngine) -> None:
    base = shelf.active_base()
    activation.refresh()
    promote(shelf, shelf.adapter(base, 0.1))
    engine.hold.clear()
    loading = threading.Thread(target=activation.refresh)
    loading.start()
    with activation.lease_model() as model:
        assert model is engine.models[0]
    assert activation.status().adapter_version is None
    engine.hold.set()
    loading.join()
    assert activation.status().adapter_version is not None


def test_a_model_is_warmed_before_it_serves_and_kept_out_when_that_fails(
    shelf: Shelf, engine: SumEngine, stopwatch: Stopwatch
) -> None:
    served_while_warming = []
    fail: list[str] = []

    def warm(model: ServedModel) -> None:
        served_while_warming.append((model.adapter_version, activation.status().adapter_version))
        model.generate([ASK], TRIE)
        if model.adapter_version in fail:
            raise RuntimeError("a kernel did not compile")

    activation = make(shelf, engine, stopwatch, warm)
    base = shelf.active_base()
    activation.refresh()
    version = shelf.adapter(base, 0.1)
    fail.append(version)
    promote(shelf, version)
    status = activation.refresh()
    assert served_while_warming == [(None, None), (version, None)]
    assert (status.adapter_version, status.wanted_version) == (None, version)
    assert "RuntimeError" in (status.degraded or "")
    assert engine.models[1].closed == 1
    activation.stop()


def test_a_damaged_adapter_leaves_the_last_good_one_serving(
    shelf: Shelf, activation: Activation, stopwatch: Stopwatch
) -> None:
    base = shelf.active_base()
    good, bad = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    promote(shelf, good)
    activation.refresh()
    promote(shelf, bad)
    whole = shelf.damage(bad)
    status = activation.refresh()
    assert (status.adapter_version, status.wanted_version, status.revision) == (good, bad, 3)
    assert "sha256" in (status.degraded or "")
    assert state(shelf, bad) is AdapterState.CORRUPT
    shelf.weights_of(bad).write_bytes(whole)
    assert activation.refresh().degraded is not None, "the retry is put off"
    stopwatch.now += FIRST_RETRY_S
    status = activation.refresh()
    assert (status.adapter_version, status.degraded) == (bad, None)


def test_failed_loads_are_retried_ever_more_rarely(
    shelf: Shelf, activation: Activation, engine: SumEngine, stopwatch: Stopwatch
) -> None:
    base = shelf.active_base()
    activation.refresh()
    version = shelf.adapter(base, 0.1)
    engine.broken.add(version)
    promote(shelf, version)
    attempts = []
    for tenth in range(3_000):
        stopwatch.now = 100.0 + tenth / 10
        before = engine.tried
        activation.refresh()
        if engine.tried != before:
            attempts.append(tenth / 10)
    assert attempts == [0, 2, 6, 14, 30, 62, 122, 182, 242]


def test_a_rollback_ends_the_degradation_at_once(shelf: Shelf, activation: Activation, engine: SumEngine) -> None:
    base = shelf.active_base()
    good, bad = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    promote(shelf, good)
    activation.refresh()
    engine.broken.add(bad)
    promote(shelf, bad)
    assert activation.refresh().degraded is not None
    service.rollback(shelf.database, shelf.clock, shelf.artifacts, ADMIN)
    status = activation.refresh()
    assert (status.adapter_version, status.revision, status.degraded) == (good, 4, None)
    assert len(engine.models) == 1
    assert state(shelf, bad) is AdapterState.RETIRED, "what only an engine cannot load is not corrupt"


def test_a_start_with_a_damaged_adapter_serves_the_one_before(shelf: Shelf, activation: Activation) -> None:
    base = shelf.active_base()
    first, second, third = (shelf.adapter(base, value) for value in (0.1, 0.2, 0.3))
    for version in (first, second, third):
        promote(shelf, version)
    shelf.damage(third)
    shelf.damage(second)
    status = activation.refresh()
    assert (status.settled, status.adapter_version, status.wanted_version) == (True, first, third)
    assert status.degraded is not None
    assert (state(shelf, third), state(shelf, second)) == (AdapterState.CORRUPT, AdapterState.CORRUPT)


def test_a_start_without_any_good_adapter_serves_the_base(shelf: Shelf, activation: Activation) -> None:
    base = shelf.active_base()
    version = shelf.adapter(base, 0.1)
    promote(shelf, version)
    shelf.damage(version)
    status = activation.refresh()
    assert (status.base_id, status.adapter_version) == (base, None)
    assert status.degraded is not None


def test_a_start_with_a_damaged_base_serves_nothing_and_says_so(shelf: Shelf, activation: Activation) -> None:
    base = shelf.active_base()
    version = shelf.adapter(base, 0.1)
    promote(shelf, version)
    (shelf.artifacts.root / "bases" / base / "model" / "model.safetensors").write_bytes(b"gone")
    status = activation.refresh()
    assert (status.settled, status.base_id) == (True, None)
    assert base in (status.degraded or "")
    assert state(shelf, version) is AdapterState.ACTIVE


def test_a_missing_folder_is_not_marked_as_damage(shelf: Shelf, activation: Activation) -> None:
    base = shelf.active_base()
    version = shelf.adapter(base, 0.1)
    promote(shelf, version)
    shelf.weights_of(version).parent.rename(shelf.folder / "away")
    assert activation.refresh().adapter_version is None
    assert state(shelf, version) is AdapterState.ACTIVE


def test_a_new_base_that_does_not_load_falls_back_within_it(
    shelf: Shelf, activation: Activation, engine: SumEngine
) -> None:
    """The old base's model is of no use: the catalogue's codes are the new base's."""
    shelf.active_base(0.5)
    activation.refresh()
    new = shelf.base(0.75)
    first = shelf.adapter(new, 0.1)
    engine.broken.add(first)
    service.activate_base(shelf.database, shelf.clock, new, actor="cli", adapter_version=first)
    status = activation.refresh()
    assert (status.base_id, status.adapter_version, status.wanted_version) == (new, None, first)
    assert engine.models[0].closed == 1


def test_a_lost_store_changes_nothing_but_is_shown(
    shelf: Shelf, activation: Activation, engine: SumEngine, database: Database
) -> None:
    shelf.active_base()
    activation.refresh()
    gone = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=0.5)
    activation._database = gone
    status = activation.refresh()
    assert (status.store_reachable, status.base_id is not None) == (False, True)
    activation._database = database
    promote(shelf, shelf.adapter(status.base_id or "", 0.1))
    status = activation.refresh()
    assert (status.store_reachable, status.adapter_version is not None) == (True, True)


def test_the_thread_follows_the_pointer_by_itself(shelf: Shelf, engine: SumEngine) -> None:
    activation = make(shelf, engine, time.monotonic)
    activation.start()
    base = shelf.active_base()
    version = shelf.adapter(base, 0.1)
    promote(shelf, version)
    activation.notify()
    deadline = time.monotonic() + 10
    while activation.status().adapter_version != version and time.monotonic() < deadline:
        time.sleep(0.01)
    assert activation.status().adapter_version == version
    activation.stop()
    assert all(model.closed == 1 for model in engine.models)
    with activation.lease_model() as model:
        assert model is None


@pytest.mark.timeout(120)
def test_swaps_under_load_never_close_a_model_in_use(
    shelf: Shelf, activation: Activation, engine: SumEngine, clock: SetClock
) -> None:
    base = shelf.active_base()
    versions = [shelf.adapter(base, value) for value in (0.1, 0.2)]
    totals = {None: 0.0}
    activation.refresh()
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                with activation.lease_model() as model:
                    assert model is not None
                    found = model.generate([ASK], TRIE)[0].scores[0]
                    assert found == pytest.approx(totals[model.adapter_version])
                time.sleep(0.0005)  # four busy threads would leave the swaps no turn
            except BaseException as error:
                failures.append(error)
                return

    for version, value in zip(versions, (0.1, 0.2), strict=True):
        totals[version] = float(sum(t.sum() for t in adapter_tensors(value).values()))
    users = [threading.Thread(target=ask) for _ in range(4)]
    for thread in users:
        thread.start()
    try:
        for i in range(20):
            promote(shelf, versions[i % 2])
            activation.refresh()
    finally:
        done.set()
        for thread in users:
            thread.join()
    assert failures == []
    assert [model.closed for model in engine.models] == [1] * 20 + [0]


def test_verification_reads_the_base_too(shelf: Shelf) -> None:
    base = shelf.active_base()
    checked = integrity.verify_with_base(shelf.database, shelf.clock, shelf.artifacts, None, actor="cli")
    assert (checked.base_id, checked.adapter_version) == (base, None)


# Another adapter beside what serves, for a few searches


def test_an_adapter_is_loaded_beside_what_serves_and_freed_after(
    shelf: Shelf, activation: Activation, engine: SumEngine
) -> None:
    base = shelf.active_base()
    activation.refresh()
    version = shelf.adapter(base, 0.25, AdapterState.REFUSED)  # why it was refused may be asked
    with activation.beside(version) as model:
        assert model.adapter_version == version
        assert activation.status().adapter_version is None
    assert [made.closed for made in engine.models] == [0, 1]


def test_nothing_is_swapped_while_another_adapter_is_beside_and_it_is_after(
    shelf: Shelf, activation: Activation, engine: SumEngine
) -> None:
    base = shelf.active_base()
    activation.refresh()
    first, second = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    with activation.beside(first):
        promote(shelf, second)
        swap = threading.Thread(target=activation.refresh)
        swap.start()
        time.sleep(0.05)
        assert activation.status().adapter_version is None
        assert len(engine.models) == 2  # never more than a swap holds
    swap.join(10)
    assert activation.status().adapter_version == second


def test_what_cannot_be_beside_is_refused_and_what_serves_goes_on(
    shelf: Shelf, activation: Activation, engine: SumEngine
) -> None:
    other = shelf.base(0.7)
    with pytest.raises(Conflict, match="no model serves"), activation.beside("a000001-0123456789ab"):
        pass
    base = shelf.active_base()
    activation.refresh()
    foreign, damaged, good = shelf.adapter(other, 0.1), shelf.adapter(base, 0.2), shelf.adapter(base, 0.3)
    shelf.damage(damaged)
    engine.broken.add(good)
    for version, refusal in (
        ("a000001-0123456789ab", NotFound),
        (foreign, Conflict),
        (damaged, ArtifactError),
        (damaged, Conflict),  # marked by the attempt before
        (good, RuntimeError),
    ):
        with pytest.raises(refusal), activation.beside(version):
            pass
    assert state(shelf, damaged) is AdapterState.CORRUPT
    promote(shelf, version := shelf.adapter(base, 0.4))
    assert activation.refresh().adapter_version == version
