"""A user is erased while a window is trained: the candidate is discarded, and the next one knows no such user."""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from service.users.service import erase_user
from service.windows.states import WindowState
from tests import worlds
from tests.trainer.test_updater import Desk, built, desk, on_sqlite, once, settings, worked  # noqa: F401  # fixtures
from trainer.base import BuiltBase

pytestmark = on_sqlite
GONE = "u07"


def erase(desk: Desk, user: str) -> None:  # noqa: F811  # the fixture's value
    assert erase_user(desk.database, user, clock=desk.clock, actor="tests").events > 0


def test_no_adapter_comes_out_that_learnt_from_a_user_who_is_erased(desk: Desk, built: BuiltBase) -> None:  # noqa: F811
    desk.send(worlds.later_walks())
    published = desk.published()

    failed = worked(desk.updater().tick(once("fit", lambda: erase(desk, GONE))))

    assert (failed.state, failed.attempts, failed.candidate_version) == (WindowState.FAILED, 0, None)
    assert failed.reason is not None
    assert failed.reason.startswith("1 of the users that it learnt from were erased")
    assert desk.published() == published  # no file of it either
    again = worked(desk.updater().tick())
    assert (again.window_id, again.attempts, again.verdict) == (failed.window_id, 1, "promoted")
    assert again.statistics is not None
    assert again.statistics["users"] == worlds.USERS - 1


def test_one_who_had_no_part_in_the_window_stops_nothing(desk: Desk, built: BuiltBase) -> None:  # noqa: F811
    desk.send(worlds.later_walks(users=worlds.USERS - 1))
    desk.send([worlds.event(f"more-{n}", "u00", worlds.item_id(n), worlds.START) for n in range(6)])
    last = f"u{worlds.USERS - 1:02d}"  # whose events are in the base alone
    done = worked(desk.updater().tick(once("fit", lambda: erase(desk, last))))
    assert (done.attempts, done.verdict) == (1, "promoted")


def test_what_was_kept_of_a_training_is_not_taken_up_without_the_user(desk: Desk, built: BuiltBase) -> None:  # noqa: F811
    """A checkpoint holds weights, no events; those learnt from the user go with the window's next attempt."""

    class Killed(BaseException):
        pass

    def stop() -> None:
        erase(desk, GONE)
        raise Killed

    desk.send(worlds.later_walks())
    quick = {"checkpoint_interval": timedelta(microseconds=1)}
    with pytest.raises(Killed):
        desk.updater(**quick).tick(once("fit", stop))
    kept = desk.settings.home_dir / "checkpoints" / "window"
    [before] = kept.iterdir()
    assert list(before.iterdir())

    desk.clock.advance(seconds=61)  # the lease of the one that was killed has run out
    seen: list[bool] = []
    with capture_logs() as logs:
        done = worked(desk.updater(**quick).tick(once("fit", lambda: seen.append(before.exists()))))
    assert done.verdict == "promoted"
    assert "training_resumed" not in {line["event"] for line in logs}
    assert seen == [False]
