"""Of one user for one item, one interaction in a block counts."""

from datetime import timedelta

from service.kit.db import Database
from service.recommend.votes import BLOCK, Votes
from tests import worlds
from tests.conftest import SetClock

T = worlds.START


def take(votes: Votes, *rows: tuple[int, str, str], event_type: str = "view") -> list[str]:
    """rows: seq, user, item; the items that count."""
    given = [(seq, user, item, event_type, T + timedelta(seconds=seq)) for seq, user, item in rows]
    return [item for item, _ in votes.take(given)]


def test_however_often_a_user_asks_for_an_item_it_counts_once() -> None:
    votes = Votes(())
    assert take(votes, (1, "u", "a"), (2, "u", "a"), (3, "v", "a"), (4, "u", "b")) == ["a", "a", "b"]
    assert take(votes, (5, "u", "a"), (6, "w", "a")) == ["a"]


def test_the_first_of_them_counts_with_its_time() -> None:
    rows = [(1, "u", "a", "view", T), (2, "u", "a", "buy", T + timedelta(days=9))]
    assert Votes(()).take(rows) == [("a", T)]


def test_in_the_next_block_it_counts_again() -> None:
    votes = Votes(())
    assert take(votes, (1, "u", "a"), (BLOCK, "u", "a"), (BLOCK + 1, "u", "a"), (2 * BLOCK, "u", "a")) == ["a", "a"]


def test_ignored_types_neither_count_nor_use_up_the_vote() -> None:
    votes = Votes({"impression"})
    assert take(votes, (1, "u", "a"), event_type="impression") == []
    assert take(votes, (2, "u", "a")) == ["a"]


def test_whoever_goes_on_from_anothers_count_counts_as_it_would(database: Database, clock: SetClock) -> None:
    worlds.send(database, clock, [worlds.event(f"e{n}", "u", item, T) for n, item in enumerate("ab")])
    with database.read() as connection:
        first, second = (Votes.standing(connection, through, ()) for through in (1, 2))
        later = Votes.standing(connection, BLOCK, ())
    assert take(first, (3, "u", "a"), (4, "u", "b")) == ["b"]
    assert take(second, (3, "u", "a"), (4, "u", "b")) == []
    assert take(later, (BLOCK + 1, "u", "a")) == ["a"]
