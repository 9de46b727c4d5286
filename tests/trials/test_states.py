"""What a trial can become, what ends it, and which users a share holds."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from service.adapters.repository import Pointer
from service.adapters.states import AdapterState
from service.trials import states
from service.trials.live import LiveTrial
from service.trials.shares import place
from service.trials.states import Arm, Deed, EndReason, Kind, Trial

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
USERS = [f"user-{number}" for number in range(20_000)]


def trial(ends_at: datetime | None = None) -> Trial:
    return Trial("a000002-000000000000", "b-1", Kind.CANARY, 0.1, "salt", NOW - timedelta(hours=1), ends_at)


@pytest.mark.parametrize(
    ("old", "new", "deed"),
    [
        (None, None, None),
        (None, Kind.SHADOW, Deed.START),
        (None, Kind.CANARY, Deed.START),
        (Kind.SHADOW, Kind.SHADOW, Deed.CHANGE),
        (Kind.SHADOW, Kind.CANARY, Deed.CHANGE),
        (Kind.SHADOW, None, Deed.END),
        (Kind.CANARY, Kind.CANARY, Deed.CHANGE),
        (Kind.CANARY, Kind.SHADOW, Deed.CHANGE),
        (Kind.CANARY, None, Deed.END),
    ],
)
def test_what_leads_from_one_kind_to_another(old: Kind | None, new: Kind | None, deed: Deed | None) -> None:
    assert states.deed(old, new) is deed


def test_every_pair_of_kinds_is_in_the_table() -> None:
    assert {(old, new) for old, found in states.TRANSITIONS.items() for new in found} == set(
        product([None, *Kind], repeat=2)
    ) - {(None, None)}


@pytest.mark.parametrize(
    ("base_id", "active", "state", "ends_at", "because"),
    [
        ("b-1", "a000001-000000000000", AdapterState.PASSED, None, None),
        ("b-1", None, AdapterState.CANDIDATE, NOW + timedelta(seconds=1), None),
        ("b-1", "a000001-000000000000", AdapterState.RETIRED, NOW, EndReason.EXPIRED),
        ("b-1", "a000002-000000000000", AdapterState.ACTIVE, NOW, EndReason.PROMOTED),
        ("b-2", None, AdapterState.PASSED, None, EndReason.BASE_CHANGED),
        (None, None, AdapterState.PASSED, None, EndReason.BASE_CHANGED),
        ("b-1", None, AdapterState.CORRUPT, None, EndReason.CORRUPT),
        ("b-1", None, AdapterState.COLLECTED, None, EndReason.COLLECTED),
        ("b-1", None, AdapterState.REFUSED, None, EndReason.REFUSED),
    ],
)
def test_what_ends_it(
    base_id: str | None, active: str | None, state: AdapterState, ends_at: datetime | None, because: EndReason | None
) -> None:
    assert states.over(trial(ends_at), Pointer(7, base_id, active), state, NOW) is because


def by_share(share: float, salt: str = "salt") -> Iterator[str]:
    live = LiveTrial(1, Kind.CANARY, "b-1", "a", share, salt)
    return (user for user in USERS if live.arm(user) is Arm.CANARY)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_share_holds_about_that_many_users(share: float) -> None:
    """Five standard deviations of a fair draw; the hash is fixed, so this never varies."""
    deviation = (share * (1 - share) / len(USERS)) ** 0.5
    assert abs(sum(1 for _ in by_share(share)) / len(USERS) - share) < 5 * deviation


def test_users_lie_evenly() -> None:
    """Chi-square over 50 cells: 49 degrees of freedom, 85.4 is its 99.9th percentile."""
    cells = [0] * 50
    for user in USERS:
        cells[int(50 * place("another salt", user))] += 1
    expected = len(USERS) / 50
    assert sum((found - expected) ** 2 / expected for found in cells) < 85.4


def test_a_larger_share_holds_the_users_of_a_smaller_one_and_all_of_them_at_last() -> None:
    small, large = set(by_share(0.1)), set(by_share(0.3))
    assert small < large
    assert set(by_share(1.0)) == set(USERS)


def test_another_salt_picks_other_users_independently() -> None:
    """Of those in a fifth by one salt, a fifth are in it by another: within five standard deviations."""
    one, two = set(by_share(0.2, "one")), set(by_share(0.2, "two"))
    assert abs(len(one & two) / len(one) - 0.2) < 5 * (0.16 / len(one)) ** 0.5


def test_who_is_not_named_is_in_no_arm_and_a_shadow_has_none() -> None:
    assert LiveTrial(1, Kind.CANARY, "b-1", "a", 1.0, "salt").arm(None) is None
    assert LiveTrial(1, Kind.SHADOW, "b-1", "a", 1.0, "salt").arm("u") is None
    assert not LiveTrial(1, Kind.CANARY, "b-1", "a", 1.0, "salt").shadows("u", "r")


def test_a_shadow_picks_by_user_and_by_the_reply_where_nobody_is_named() -> None:
    live = LiveTrial(1, Kind.SHADOW, "b-1", "a", 0.5, "salt")
    assert len({live.shadows("user", f"r{number}") for number in range(50)}) == 1
    assert {live.shadows(None, f"r{number}") for number in range(50)} == {True, False}


def test_the_hash_is_the_same_for_good() -> None:
    """Replicas of two versions must agree on who is in which arm."""
    assert [round(place("salt", user), 6) for user in ("a", "ü", "user-1")] == [
        0.168117,
        0.291942,
        0.297382,
    ]
