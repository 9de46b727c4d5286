"""Two lists side by side."""

from service.dashboard.comparison import Difference, UserDifference, rank_changes
from tests.worlds import START


def test_items_are_kept_moved_new_or_gone() -> None:
    changes = rank_changes(["a", "b", "c"], ["a", "c", "d"], str.upper)
    assert [(c.item_id, c.kind, c.serves, c.other, c.moved) for c in changes] == [
        ("a", "kept", 1, 1, 0),
        ("c", "moved", 3, 2, 1),
        ("d", "new", None, 3, 0),
        ("b", "gone", 2, None, 0),
    ]
    assert changes[0].title == "A"


def test_the_share_of_what_stays_is_the_mean_over_users() -> None:
    half = UserDifference("u", (), rank_changes(["a", "b"], ["b", "c"], str))
    same = UserDifference("v", (), rank_changes(["a"], ["a"], str))
    assert Difference(START, "a2", "a1", (half, same), (), False).shared == 0.75
    assert Difference(START, "a2", "a1", (), (), False).shared is None
