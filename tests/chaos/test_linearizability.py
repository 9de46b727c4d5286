"""Scenario 11: what admins saw of the pointer while replicas were killed and paused can have happened in one order."""

import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sa

from service.adapters import repository
from service.adapters import service as registry
from service.adapters.artifacts import ArtifactStore
from service.adapters.tables import activations
from service.kit.clock import utc_now
from tests.chaos.linearizability import (
    Operation,
    Pointer,
    Promote,
    Read,
    RollBack,
    Told,
    Undecided,
    linearize,
    pointer_step,
)
from tests.chaos.recorder import PATH, Recorder, Recording, Sight, look
from tests.chaos.scenarios import FULL, sized
from tests.cluster.cluster import REPLICAS, WITHIN_S, Cluster
from tests.cluster.running import another

if TYPE_CHECKING:
    from tests.cluster.traffic import Referee

BASE = Pointer(1, None, (None,))


def done(asked: object, told: Told, began: float, ended: float) -> Operation:
    return Operation(asked, told, began, ended)


def moved(revision: int, to: str | None, left: str | None = None) -> Told:
    return Told(200, revision, to, left)


def explained(*history: Operation) -> bool:
    return linearize(history, pointer_step, BASE) is not None


def test_one_after_the_other() -> None:
    assert explained(
        done(Promote("a"), moved(2, "a"), 0, 1),
        done(Promote("b", 2), moved(3, "b", "a"), 2, 3),
        done(Read(), Told(200, 3, "b"), 4, 5),
        done(RollBack(None), moved(4, "a", "b"), 6, 7),
        done(RollBack(None), moved(5, None, "a"), 8, 9),
        done(RollBack(None), Told(409), 10, 11),
    )


def test_two_at_once_happen_in_the_order_that_their_answers_say() -> None:
    assert explained(done(Promote("a"), moved(3, "a", "b"), 0, 9), done(Promote("b"), moved(2, "b"), 1, 8))
    assert explained(done(Promote("a", 1), moved(2, "a"), 0, 9), done(Promote("b", 1), Told(412), 1, 8))


def test_two_winners_of_one_revision_are_found_out() -> None:
    assert not explained(done(Promote("a", 1), moved(2, "a"), 0, 9), done(Promote("b", 1), moved(2, "b"), 1, 8))
    assert not explained(done(Promote("a", 1), moved(2, "a"), 0, 9), done(Promote("b", 1), moved(3, "b", "a"), 1, 8))


def test_a_read_of_what_was_over_before_it_began_is_found_out() -> None:
    promoted = done(Promote("a"), moved(2, "a"), 0, 1)
    assert not explained(promoted, done(Read(), Told(200, 1, None), 2, 3))
    assert explained(promoted, done(Read(), Told(200, 1, None), 0.5, 3))


def test_reads_that_go_back_in_time_are_found_out() -> None:
    promoting = done(Promote("a"), moved(2, "a"), 0, 10)
    new, old = Told(200, 2, "a"), Told(200, 1, None)
    assert explained(promoting, done(Read(), old, 1, 2), done(Read(), new, 3, 4))
    assert not explained(promoting, done(Read(), new, 1, 2), done(Read(), old, 3, 4))


def test_a_rollback_to_another_one_than_was_before_is_found_out() -> None:
    promotions = [done(Promote("a"), moved(2, "a"), 0, 1), done(Promote("b"), moved(3, "b", "a"), 2, 3)]
    assert explained(*promotions, done(RollBack(None), moved(4, "a", "b"), 4, 5))
    assert not explained(*promotions, done(RollBack(None), moved(4, None, "b"), 4, 5))


def test_a_lost_move_is_found_out() -> None:
    """Told as made, and the next one knows nothing of it."""
    assert not explained(done(Promote("a"), moved(2, "a"), 0, 1), done(Promote("b"), moved(2, "b"), 2, 3))


def test_a_move_that_was_made_twice_is_found_out() -> None:
    assert not explained(
        done(Promote("a"), moved(2, "a"), 0, 1),
        done(RollBack(None), moved(3, None, "a"), 2, 3),
        done(Read(), Told(200, 4, "a"), 4, 5),
    )


def test_what_nobody_knows_may_have_happened_or_not_and_late_but_once() -> None:
    lost = Operation(Promote("a"), None, 0)
    assert explained(lost, done(Read(), Told(200, 1, None), 5, 6))
    assert explained(lost, done(Read(), Told(200, 2, "a"), 5, 6))
    assert explained(lost, done(Read(), Told(200, 1, None), 5, 6), done(Read(), Told(200, 2, "a"), 7, 8))
    assert not explained(lost, done(Read(), Told(200, 2, "a"), 5, 6), done(Read(), Told(200, 1, None), 7, 8))
    assert not explained(lost, done(Read(), Told(200, 3, "a"), 5, 6))
    assert not explained(Operation(Promote("a"), None, 4), done(Read(), Told(200, 2, "a"), 1, 2))


def test_a_refusal_without_a_reason_is_found_out() -> None:
    assert not explained(done(Promote("a", 1), Told(412), 0, 1))
    assert not explained(done(Promote("a"), Told(409), 0, 1))
    assert explained(done(Promote("a"), moved(2, "a"), 0, 1), done(Promote("a"), Told(409), 2, 3))


def test_the_search_says_when_it_cannot_decide() -> None:
    lost = [Operation(Promote(f"v{number}"), None, 0) for number in range(12)]
    with pytest.raises(Undecided):
        linearize([*lost, done(Read(), Told(200, 99, None), 1, 2)], pointer_step, BASE, most=1000)


def test_the_search_agrees_with_trying_every_order() -> None:
    """On 400 small histories, some of which were made false."""
    verdicts = set()
    for seed in range(400):
        history = _made_up(random.Random(seed))
        expected = any(_holds(order) for order in _orders(history))
        assert (linearize(history, pointer_step, BASE) is not None) == expected, (seed, history)
        verdicts.add(expected)
    assert verdicts == {True, False}


def _made_up(draw: random.Random) -> list[Operation]:
    state, history = BASE, []
    for number in range(5):
        asked = draw.choice([Promote("a"), Promote("b", state.revision), RollBack(None), RollBack("base"), Read()])
        before, state = state, pointer_step(state, Operation(asked, None, 0)) or state
        if isinstance(asked, Read):
            told = Told(200, state.revision, state.version)
        else:
            told = moved(state.revision, state.version, before.version) if state != before else Told(409)
        if draw.random() < 0.15:
            told = told._replace(revision=(told.revision or 0) + draw.choice([-1, 1]))
        began, ended = number + draw.uniform(-1.5, 0), number + draw.uniform(0, 1.5)
        known = draw.random() > 0.2
        history.append(Operation(asked, told if known else None, began, ended if known else float("inf")))
    return history


def _orders(history: Sequence[Operation]) -> list[tuple[Operation, ...]]:
    known = [operation for operation in history if operation.known]
    unknown = [operation for operation in history if not operation.known]
    chosen = itertools.chain.from_iterable(itertools.combinations(unknown, count) for count in range(len(unknown) + 1))
    return [order for some in chosen for order in itertools.permutations([*known, *some])]


def _holds(order: Sequence[Operation]) -> bool:
    state: Pointer | None = BASE
    for place, operation in enumerate(order):
        if any(later.ended < operation.began for later in order[place:]):
            return False
        state = pointer_step(state, operation) if state is not None else None
        if state is None:
            return False
    return True


@pytest.fixture(scope="module")
def versions(
    running: "tuple[Cluster, tuple[str, str], Referee]", tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Three adapters that may serve."""
    cluster, two, _ = running
    artifacts = ArtifactStore(cluster.folder / "artifacts")
    return [*two, another(cluster.database, artifacts, tmp_path_factory.mktemp("third"), two[0], seed=7)]


@pytest.mark.e2e
@pytest.mark.postgres
@pytest.mark.timeout(2 * 3600 if FULL else 600)
@pytest.mark.scenario(11)
@pytest.mark.parametrize("running", sized(["redis"], ["polling", "redis"]), indirect=True)
def test_what_was_seen_while_replicas_died_and_stalled_can_have_happened_in_one_order(
    cluster: Cluster, versions: list[str], figures: dict[str, Any]
) -> None:
    within = WITHIN_S[cluster.heard_by]
    totals: Counter[str] = Counter()
    slowest = 0.0
    for seed in range(sized(1, 20)):
        cluster.heal()
        draw = random.Random(seed)
        start = _at_the_base(cluster)
        recorder = Recorder([cluster.url(host) for host in REPLICAS], cluster.headers, versions, seed)
        with recorder as seen:
            for deed in sized(["pause", "kill", "pause"], ["pause", "kill", "pause", "pause", "kill", "pause"]):
                time.sleep(draw.uniform(0.3, 1.0))
                _disturb(cluster, draw.choice(REPLICAS), deed, draw)
                totals[f"{deed}s"] += 1
            while not _in_the_dark(seen):  # no pause outlasted anyone's patience yet, which depends on luck
                _disturb(cluster, draw.choice(REPLICAS), "pause", draw)
                totals["pauses"] += 1
            for host in REPLICAS:
                cluster.until(f"{host} serves", lambda host=host: _looked(cluster, host), 120)
        cluster.heal()
        last, took = _converged(cluster, versions, within)
        slowest = max(slowest, took)

        assert seen.refused == []
        found = linearize([*seen.operations, *last], pointer_step, start)
        assert found is not None, f"seed {seed}: no order explains {seen.operations}"
        _assert_each_replica_went_on(cluster, seen.sights.values())
        totals += Counter(
            operations=len(seen.operations),
            moves=sum(op.known and op.told.revision is not None for op in seen.operations),  # type: ignore[attr-defined]
            outcome_unknown=_unknown(seen),
            asked_again=seen.retried,
            sights=sum(map(len, seen.sights.values())),
            states_looked_at=found.looked_at,
        )
    figures |= {"heard_by": cluster.heard_by, "seeds": sized(1, 20), **totals}
    figures |= {"slowest_to_converge_s": round(slowest, 2)}
    assert totals["moves"] > 0


def _unknown(seen: Recording) -> int:
    return sum(not operation.known for operation in seen.operations)


def _in_the_dark(seen: Recording) -> bool:
    """Whether an answer did not come, so that a move was asked for again or its outcome is unknown."""
    return seen.retried + _unknown(seen) > 0


def _at_the_base(cluster: Cluster) -> Pointer:
    """The base alone, with nothing to go back to."""
    with cluster.database.read() as connection:
        base_id = repository.read_pointer(connection).base_id
    assert base_id is not None
    moved = registry.activate_base(cluster.database, utc_now, base_id, actor="tests")
    return Pointer(moved.revision, None, (None,))


def _disturb(cluster: Cluster, host: str, deed: str, draw: random.Random) -> None:
    process = cluster.replicas[host]
    if deed == "pause":
        process.signal(signal.SIGSTOP)
        time.sleep(draw.uniform(0.5, 2.5))
        process.signal(signal.SIGCONT)
    else:
        process.signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        time.sleep(draw.uniform(0, 1))
        cluster.start_replica(host)


def _looked(cluster: Cluster, host: str) -> Sight | None:
    try:
        return look(cluster.direct(host))
    except httpx.TransportError:
        return None


def _converged(cluster: Cluster, versions: list[str], within: float) -> tuple[list[Operation], float]:
    """A last move and a read after it, and how long the slowest replica took to serve what it made."""
    first = cluster.direct(REPLICAS[0])
    began = time.monotonic()
    active = first.get(PATH).raise_for_status().json()["active"]
    shown = time.monotonic()
    wanted = next(version for version in versions if version != active["adapter_version"])
    moved = first.post(f"{PATH}/{wanted}/promote").raise_for_status().json()
    made = time.monotonic()
    for host in REPLICAS:
        cluster.until(
            f"{host} serves revision {moved['revision']} within {within:g} s",
            lambda host=host: look(cluster.direct(host)) == Sight(moved["revision"], wanted, moved["revision"]) or None,
            made + within - time.monotonic(),
        )
    took = time.monotonic() - made
    read = Operation(Read(), Told(200, active["revision"], active["adapter_version"]), began, shown)
    told = Told(200, moved["revision"], moved["to_version"], moved["from_version"])
    return [read, Operation(Promote(wanted), told, shown, made)], took


def _assert_each_replica_went_on(cluster: Cluster, sights: Iterable[list[Sight]]) -> None:
    """No replica went back to an earlier revision, and replies named what the revision of their moment names."""
    with cluster.database.read() as connection:
        query = sa.select(activations.c.revision, activations.c.to_version)
        named: dict[int, str | None] = {revision: version for revision, version in connection.execute(query)}
    for looks in sights:
        served = [revision for sight in looks for revision in (sight.before, sight.after)]
        assert served == sorted(served)
        for sight, following in itertools.pairwise(looks):
            # The next look's, since a reply may come from a model whose revision is about to be told
            possible = {named[revision] for revision in range(sight.before, following.after + 1)}
            assert sight.version in possible, (sight, following)
