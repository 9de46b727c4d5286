"""What a report says, on lists that can be compared by hand."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from service.adapters.moves import MoveRequest
from service.errors import NotFound
from service.kit.db import Database
from service.kit.ids import least_uuid7, uuid7
from service.recommend import repository as recommendations
from service.trials import judging, repository
from service.trials import service as trials
from service.trials.judging import report
from service.trials.report import Judged, of_canary, of_shadow, paired, unpaired
from service.trials.service import Wanted
from service.trials.states import Kind
from tests import worlds
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock

IGNORED = frozenset({"impression"})
HOUR = timedelta(hours=1)


def judged(user: str, shown: str, shadow: str, taken: str = "", organic: str = "") -> Judged:
    """Each letter is an item."""
    return Judged(user, tuple(shown), tuple(shadow), frozenset(taken), frozenset(organic))


def test_overlap_shift_and_correlation() -> None:
    """abc and acd share a and c: c went from the third place to the second. ab and ba share all, in the other order."""
    found = of_shadow([judged("u", "abc", "acd"), judged("v", "ab", "ba"), judged("w", "ab", "cd")])
    assert found.requests == 3
    assert found.overlap == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.rank_shift == pytest.approx((0.5 + 1) / 2)
    assert found.rank_correlation == pytest.approx((1 - 1) / 2)


def test_hits_are_of_both_lists_on_the_same_events() -> None:
    """u took c, which only the candidate had; v took a, which both had; w took nothing and does not count."""
    found = of_shadow([judged("u", "ab", "bc", "c", "c"), judged("v", "ab", "ba", "a"), judged("w", "ab", "ba")])
    hits = found.hits
    assert (hits.control.requests, hits.control.users) == (2, 2)
    assert (hits.control.hits, hits.candidate.hits, hits.difference) == (0.5, 1.0, 0.5)
    assert (found.organic_hits.candidate.requests, found.organic_hits.difference) == (1, 1.0)
    assert found.organic_hits.ci95 is None


def test_users_not_requests_carry_the_interval() -> None:
    """Differences 1, 1 of one user and 0 of another: mean 2/3, users' residuals 2/3 and -2/3.

    Standard error: sqrt(2 * (2/3)^2 * 2/1) / 3 = 0.4444.
    """
    found = paired([("u", 0, 1), ("u", 0, 1), ("v", 1, 1)])
    assert found.difference == pytest.approx(2 / 3)
    assert found.ci95 == pytest.approx((2 / 3 - 1.959964 * 4 / 9, 2 / 3 + 1.959964 * 4 / 9))


def test_two_arms_are_two_groups() -> None:
    """Of control's users one of two hit, of canary's two of two: standard errors of 0.5 and 0."""
    found = unpaired([("a", 1.0), ("b", 0.0)], [("c", 1.0), ("d", 1.0)])
    assert found.difference == 0.5
    assert found.ci95 == pytest.approx((0.5 - 1.959964 / 2, 0.5 + 1.959964 / 2))


def test_nothing_is_said_of_nothing() -> None:
    empty = of_shadow([])
    assert (empty.overlap, empty.rank_shift, empty.hits.difference, empty.hits.ci95) == (None, None, None, None)
    assert of_canary([], [judged("u", "a", "", "a")]).difference is None


# From the store


def recommended(
    database: Database, user: str | None, at: datetime, items: Sequence[str], **more: Any
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "recommendation_id": least_uuid7(at)[:14] + uuid7()[14:],
        "user_id": user,
        "created_at": at,
        "strategy": "personalised",
        "fallback_reason": None,
        "base_id": None,
        "adapter_version": None,
        "catalog_revision": 0,
        "history": [],
        "items": [[item, 0.0] for item in items],
        "arm": None,
    } | more
    with database.write() as connection:
        recommendations.insert(connection, [row])
    return row


@pytest.fixture
def candidate(shelf: Shelf) -> str:
    """On trial."""
    version = shelf.adapter(shelf.active_base(), 0.1)
    for kind in Kind:  # a shadow, then a canary
        wanted = Wanted(version, kind, 0.5)
        trials.run(shelf.database, shelf.clock, shelf.artifacts, wanted, MoveRequest("cli"))
    return version


def test_without_a_trial_there_is_no_report(database: Database) -> None:
    with pytest.raises(NotFound):
        report(database, HOUR, IGNORED)
    with pytest.raises(NotFound, match="never on trial"):
        report(database, HOUR, IGNORED, "a000001-000000000000")


def test_what_counts_is_what_the_user_took_within_the_horizon_or_names_the_reply(
    shelf: Shelf, candidate: str, clock: SetClock
) -> None:
    database, at = shelf.database, clock()
    mine = recommended(database, "u", at, "ab")
    anonymous = recommended(database, None, at, "ab")
    other = recommended(database, "v", at, "ab")
    with database.write() as connection:
        stored = repository.insert_shadow(
            connection,
            [
                {
                    "recommendation_id": row["recommendation_id"],
                    "adapter_version": candidate,
                    "items": [["b", 0.0], ["c", 0.0]],
                    "created_at": at,
                }
                for row in (mine, anonymous, other, {"recommendation_id": uuid7()})
            ],
        )
    assert stored == 3
    clock.advance(hours=5)
    minute = timedelta(minutes=1)
    worlds.send(
        database,
        clock,
        [
            worlds.event("before", "u", "a", at - minute),
            worlds.event("seen only", "u", "a", at + minute, "impression"),
            worlds.event("mine", "u", "c", at + minute),
            worlds.event("too late", "u", "a", at + 2 * HOUR),
            worlds.event("named", "w", "a", at + minute, recommendation_id=anonymous["recommendation_id"]),
        ],
    )
    found = report(database, HOUR, IGNORED)
    assert (found.adapter_version, found.shadow.requests) == (candidate, 3)
    hits = found.shadow.hits
    assert (hits.control.requests, hits.control.hits, hits.candidate.hits) == (2, 0.5, 0.5)
    organic = found.shadow.organic_hits
    assert (organic.control.requests, organic.control.hits, organic.candidate.hits) == (1, 0.0, 1.0)


def test_the_arms_of_a_canary_are_compared_over_the_same_time(shelf: Shelf, candidate: str, clock: SetClock) -> None:
    database, at = shelf.database, clock()
    for number in range(4):
        arm = "canary" if number % 2 else "control"
        recommended(database, f"u{number}", at, ["a" if number == 1 else "b"], arm=arm)
    recommended(database, "u9", at, ["a"])
    clock.advance(hours=5)
    trials.end(database, clock, MoveRequest("cli"))
    clock.advance(hours=1)
    recommended(database, "u0", clock(), ["a"], arm="canary")  # of a later trial
    took = [worlds.event(f"e{number}", f"u{number}", "a", at + timedelta(minutes=1)) for number in range(4)]
    worlds.send(database, clock, took)
    found = report(database, HOUR, IGNORED, candidate).canary
    assert (found.control.requests, found.candidate.requests) == (2, 2)
    assert (found.control.hits, found.candidate.hits, found.difference) == (0.0, 0.5, 0.5)


def test_a_shadow_has_no_arms_that_were_looked_for(shelf: Shelf, clock: SetClock) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    wanted = Wanted(version, Kind.SHADOW, 0.5)
    trials.run(shelf.database, clock, shelf.artifacts, wanted, MoveRequest("cli"))
    recommended(shelf.database, "u", clock(), ["a"], arm="canary")  # which a shadow never writes
    worlds.send(shelf.database, clock, [worlds.event("e", "u", "a", clock() + timedelta(minutes=1))])
    assert report(shelf.database, HOUR, IGNORED).canary.candidate.requests == 0
    trials.run(shelf.database, clock, shelf.artifacts, Wanted(version, Kind.CANARY, 0.5), MoveRequest("cli"))
    assert report(shelf.database, HOUR, IGNORED).canary.candidate.requests == 1


def test_arms_are_looked_for_among_the_newest_recommendations_only(
    shelf: Shelf, candidate: str, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "SEARCHED", 3)
    for number in range(5):
        clock.advance(minutes=1)
        arm = "canary" if number in (0, 3) else None
        recommended(shelf.database, f"u{number}", clock(), ["a"], arm=arm)
    clock.advance(minutes=1)
    worlds.send(shelf.database, clock, [worlds.event(f"later{n}", f"u{n}", "a", clock()) for n in range(5)])
    found = report(shelf.database, HOUR, IGNORED)
    assert found.canary.candidate.requests == 1
    assert found.since == clock() - timedelta(minutes=3)


def test_a_shadow_ranking_goes_with_its_recommendation(shelf: Shelf, candidate: str, clock: SetClock) -> None:
    """As the retention deletes those, and a withdrawal."""
    database, at = shelf.database, clock()
    rows = [recommended(database, user, at, "ab") for user in ("u", "v")]
    with database.write() as connection:
        for row in rows:
            shadow = {"adapter_version": candidate, "items": [["b", 0.0]], "created_at": at}
            repository.insert_shadow(connection, [shadow | {"recommendation_id": row["recommendation_id"]}])
        recommendations.delete(connection, [rows[0]["recommendation_id"]])
    with database.read() as connection:
        left = repository.shadow_of(connection, [row["recommendation_id"] for row in rows])
    assert [row["recommendation_id"] for row in left] == [rows[1]["recommendation_id"]]
