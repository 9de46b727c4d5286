"""ADAPTIDE_PROMOTE=canary: a window's candidate answers a share of the users first, and later windows wait for it."""

import json
from datetime import timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from service.adapters import service as adapters
from service.adapters.artifacts import ArtifactStore
from service.adapters.moves import MoveRequest
from service.adapters.states import AdapterState
from service.settings import Promote
from service.trials import service as trials
from service.trials.service import Wanted
from service.trials.states import EndReason, Kind
from service.windows import service as windows
from service.windows.repository import Window
from service.windows.states import WindowState
from tests import worlds
from tests.adapters.test_commands import _logging_is_put_back  # noqa: F401
from tests.trainer.test_updater import Desk, built, desk, settings, worked  # noqa: F401
from trainer.base import BuiltBase
from trainer.cli import updater as commands

ADMIN = MoveRequest("key:admin")
HELD: dict[str, Any] = {"promote": Promote.CANARY, "canary_share": 0.2, "canary_duration": timedelta(hours=6)}


def tick(desk: Desk, **changes: Any) -> Window | None:  # noqa: F811
    return desk.updater(**HELD | changes).tick()


def sealed(desk: Desk) -> int:  # noqa: F811
    return len(windows.read_page(desk.database, desk.settings).windows)


@pytest.fixture
def candidate(desk: Desk, built: BuiltBase) -> str:  # noqa: F811
    """Of a window that passed; events for another one wait."""
    for number in (1, 2):
        desk.send(worlds.later_walks(number))
    window = worked(tick(desk))
    assert (window.state, desk.pointer().adapter_version) == (WindowState.CANARY, built.adapter_version)
    assert window.candidate_version is not None
    return window.candidate_version


def test_what_passed_is_tried_and_promoted_when_its_time_is_over(desk: Desk, candidate: str) -> None:  # noqa: F811
    found = trials.read(desk.database)
    assert found.trial is not None
    assert (found.trial.adapter_version, found.trial.kind, found.trial.share) == (candidate, Kind.CANARY, 0.2)
    assert desk.state(candidate) is AdapterState.PASSED

    desk.clock.advance(hours=5)
    assert tick(desk) is None  # the next window waits
    assert sealed(desk) == 2  # and is still open: what comes meanwhile is one window
    desk.clock.advance(hours=1)
    window = worked(tick(desk))
    assert desk.pointer().adapter_version == candidate
    assert (window.window_id, window.incumbent_version) == (3, candidate)
    assert EndReason.PROMOTED in {row.because for row in trials.read(desk.database).history}


def test_a_candidate_that_is_refused_meanwhile_is_never_promoted(desk: Desk, candidate: str) -> None:  # noqa: F811
    trials.end(desk.database, desk.clock, MoveRequest("service"), EndReason.LIVE_METRIC)
    before = desk.pointer()
    desk.clock.advance(hours=7)
    window = worked(tick(desk))
    assert (window.incumbent_version, desk.pointer().revision) == (before.adapter_version, before.revision)


def test_who_changes_the_trial_decides_on_it(desk: Desk, candidate: str) -> None:  # noqa: F811
    """The updater goes on, and its next candidate takes the place."""
    artifacts = ArtifactStore(desk.settings.artifacts_dir)
    trials.run(desk.database, desk.clock, artifacts, Wanted(candidate, Kind.CANARY, 0.5), ADMIN)
    desk.clock.advance(hours=7)
    window = worked(tick(desk))
    assert desk.pointer().adapter_version != candidate
    assert window.state is WindowState.CANARY
    [start, end, *_] = trials.read(desk.database).history
    assert (start.adapter_version, end.because) == (window.candidate_version, EndReason.SUPERSEDED)


def test_a_promotion_by_hand_ends_the_waiting(desk: Desk, candidate: str) -> None:  # noqa: F811
    adapters.promote(desk.database, desk.clock, desk.artifacts, candidate, ADMIN)
    assert worked(tick(desk)).incumbent_version == candidate


def test_a_canary_comes_to_its_end_when_promotion_is_at_once_again(desk: Desk, candidate: str) -> None:  # noqa: F811
    assert tick(desk, promote=Promote.AT_ONCE) is None
    desk.clock.advance(hours=6)
    window = worked(tick(desk, promote=Promote.AT_ONCE))
    assert (window.state, window.incumbent_version) == (WindowState.PROMOTED, candidate)
    assert trials.read(desk.database).trial is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_update_by_hand_says_what_it_waits_for_and_closes_nothing(
    desk: Desk,  # noqa: F811
    candidate: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADAPTIDE_HOME", str(desk.settings.home))
    monkeypatch.setenv("ADAPTIDE_DATABASE_URL", desk.settings.database_url.get_secret_value())
    monkeypatch.setenv("ADAPTIDE_CANARY_DURATION", "P9999D")
    said = CliRunner().invoke(commands, ["update"], catch_exceptions=False)
    assert f"before the canary of {candidate} is over" in said.stdout
    assert "no event has arrived" not in said.stdout
    found = json.loads(CliRunner().invoke(commands, ["update", "--json"], catch_exceptions=False).stdout)
    assert found == {"dry_run": False, "windows": [], "canary": candidate}
    assert sealed(desk) == 2
