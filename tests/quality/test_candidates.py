"""A canary whose candidate does worse than what serves beside it is ended, and its candidate is not promoted."""

from pathlib import Path

import pytest

from service.adapters.moves import MoveRequest
from service.adapters.states import AdapterState
from service.kit.db import Database
from service.kit.lease_keeper import held
from service.quality import candidates, monitor
from service.quality.folding import QUALITY_LEASE
from service.trials import repository
from service.trials import service as trials
from service.trials.repository import TrialRow
from service.trials.states import EndReason, Kind
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock
from tests.quality.shown import Shop
from tests.quality.test_monitor import Stage


@pytest.fixture
def stage(shop: Shop, tmp_path: Path, database: Database, clock: SetClock) -> Stage:
    return Stage(shop, Shelf(tmp_path, database, clock), clock)


def on_trial(stage: Stage, kind: Kind = Kind.CANARY) -> tuple[str, str]:
    """What serves, and a candidate beside it from then on."""
    serving = stage.promote(0.1, 0)
    candidate = stage.shelf.adapter(stage.base, 0.2, AdapterState.PASSED)
    wanted = trials.Wanted(candidate, kind, 0.5)
    trials.run(stage.database, stage.clock, stage.shelf.artifacts, wanted, MoveRequest("updater"))
    return serving, candidate


def refuse(stage: Stage, *, automatic: bool = True) -> TrialRow | None:
    chosen = stage.settings.model_copy(update={"rollback_automatic": automatic})
    with held(stage.database, QUALITY_LEASE, "test", chosen.lease_duration) as lease:
        assert lease is not None
        return candidates.refuse(stage.database, stage.clock, chosen, lease)


def under_way(stage: Stage) -> bool:
    with stage.database.read() as connection:
        latest = repository.latest(connection)
    return latest is not None and latest.trial is not None


def test_a_candidate_that_nobody_takes_from_is_ended_and_what_serves_stays(stage: Stage) -> None:
    serving, candidate = on_trial(stage)
    stage.serve(serving, 15, hits=100, arm="control")
    stage.serve(candidate, 15, arm="canary")
    stage.shop.fold()
    done = refuse(stage)
    assert done is not None
    assert (done.adapter_version, done.because, done.actor) == (candidate, EndReason.LIVE_METRIC, monitor.ACTOR)
    assert "concurrent control" in (done.reason or "")
    assert not under_way(stage)
    assert stage.pointer().adapter_version == serving
    assert refuse(stage) is None


def test_one_that_is_as_good_goes_on(stage: Stage) -> None:
    serving, candidate = on_trial(stage)
    stage.serve(serving, 15, hits=100, arm="control")
    stage.serve(candidate, 15, hits=100, arm="canary")
    stage.shop.fold()
    assert refuse(stage) is None
    assert under_way(stage)


def test_it_only_says_so_unless_it_is_turned_on_and_never_for_a_shadow(stage: Stage) -> None:
    serving, candidate = on_trial(stage, Kind.SHADOW)
    stage.serve(serving, 15, hits=100, arm="control")
    stage.serve(candidate, 15, arm="canary")
    stage.shop.fold()
    assert refuse(stage) is None
    trials.run(
        stage.database,
        stage.clock,
        stage.shelf.artifacts,
        trials.Wanted(candidate, Kind.CANARY, 0.5),
        MoveRequest("updater"),
    )
    assert refuse(stage, automatic=False) is None
    assert under_way(stage)


def test_only_the_arms_are_compared(stage: Stage) -> None:
    """Half of control's and of the canary's are hits; what is in no arm would make the candidate look bad."""
    serving, candidate = on_trial(stage)
    stage.serve(serving, 15, hits=100, arm="control")
    stage.serve(candidate, 15, hits=100, arm="canary")
    stage.serve(serving, 15, shown=2_000, hits=2_000)  # nobody was named, or the replica did not hold the candidate
    stage.serve(candidate, 15, shown=2_000, arm="control")  # of another trial's control
    stage.serve(candidate, 15, shown=2_000)
    stage.shop.fold()
    assert refuse(stage) is None
    assert under_way(stage)


def test_what_was_before_the_trial_does_not_count(stage: Stage) -> None:
    serving, candidate = on_trial(stage)
    stage.serve(serving, -5, hits=200, arm="control")  # of an earlier trial
    stage.serve(candidate, -5, arm="canary")
    stage.shop.fold()
    assert refuse(stage) is None
    stage.serve(serving, 15, hits=20, shown=20, arm="control")
    stage.shop.fold()
    assert refuse(stage) is None
