"""What automatic rollback compares with what."""

from datetime import UTC, datetime, timedelta

from service.quality.figures import Counts, Sums
from service.quality.repository import Bucket, Model
from service.quality.service import sides_of
from service.trials.states import Arm

SINCE = datetime(2026, 3, 1, tzinfo=UTC)


def bucket(model: str, arm: str | None, shown: int, hours: int = 1) -> Bucket:
    start = SINCE + timedelta(hours=hours)
    by = Model(model, "personalised", *([] if arm is None else [arm]))
    return Bucket(start, start + timedelta(hours=1), by, Counts(Sums(shown=shown)))


def test_where_a_canary_divides_the_users_nobody_else_is_compared() -> None:
    """The version before is tried again beside the one that serves: users without an id are in no arm of that."""
    nobody, control = bucket("b", None, 700), bucket("b", Arm.CONTROL.value, 90)
    canary, earlier = bucket("a", Arm.CANARY.value, 10), bucket("b", None, 50, hours=0)
    sides = sides_of([earlier, nobody, control, canary], "b", "a", SINCE)
    assert (sides.challenger.shown, sides.incumbent.shown, sides.concurrent) == (90, 10, True)


def test_without_a_canary_all_that_both_answered_at_one_time_counts() -> None:
    sides = sides_of([bucket("a", None, 40), bucket("b", None, 60)], "b", "a", SINCE)
    assert (sides.challenger.shown, sides.incumbent.shown, sides.concurrent) == (60, 40, True)


def test_a_canary_of_a_third_version_changes_nothing() -> None:
    before = bucket("a", None, 80, hours=-2)
    found = [before, bucket("b", None, 30), bucket("b", Arm.CONTROL.value, 20), bucket("c", Arm.CANARY.value, 10)]
    sides = sides_of(found, "b", "a", SINCE)
    assert (sides.challenger.shown, sides.incumbent.shown, sides.concurrent) == (50, 80, False)
