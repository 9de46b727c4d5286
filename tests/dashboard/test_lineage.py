"""The drawing of who was trained from whom, on histories of a few adapters."""

from datetime import UTC, datetime

from service.adapters.repository import ActivationRow, Adapter
from service.adapters.states import Action, AdapterState
from service.dashboard.lineage import draw

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def adapter(version: str, parent: str | None) -> Adapter:
    return Adapter(version, "b", "d", "peso", parent, state=AdapterState.PASSED, created_at=NOW)


def move(revision: int, action: Action, left: str | None, to: str | None) -> ActivationRow:
    return ActivationRow(f"m{revision}", revision, action, "b", left, to, None, "cli", None, None, None, NOW)


def newest_first(*made: Adapter) -> list[Adapter]:
    return list(reversed(made))


def lanes(drawn: object) -> dict[str | None, int]:
    return {node.version: node.lane for node in drawn.nodes}  # type: ignore[attr-defined]


def test_a_chain_stands_in_one_column_with_the_base_at_the_bottom() -> None:
    drawn = draw(newest_first(adapter("a1", None), adapter("a2", "a1"), adapter("a3", "a2")), [], "a3")
    assert [node.version for node in drawn.nodes] == ["a3", "a2", "a1", None]
    assert set(lanes(drawn).values()) == {0}
    assert [node.version for node in drawn.nodes if node.serves] == ["a3"]
    assert [edge.kind for edge in drawn.edges] == ["trained"] * 3


def test_the_child_that_served_goes_on_and_the_refused_one_branches_off() -> None:
    moves = [move(1, Action.BASE, None, None), move(2, Action.WINDOW, None, "a1"), move(3, Action.WINDOW, "a1", "a2")]
    made = newest_first(adapter("a1", None), adapter("a2", "a1"), adapter("refused", "a1"))
    assert lanes(draw(made, moves, "a2")) == {"refused": 1, "a2": 0, "a1": 0, None: 0}


def test_a_column_is_used_again_once_its_line_has_ended() -> None:
    made = newest_first(
        adapter("a1", None), adapter("r1", None), adapter("a2", "a1"), adapter("r2", "a1"), adapter("a3", "a2")
    )
    moves = [move(2, Action.WINDOW, None, "a1"), move(3, Action.WINDOW, "a1", "a2"), move(4, Action.WINDOW, "a2", "a3")]
    found = lanes(draw(made, moves, "a3"))
    assert (found["r1"], found["a3"], found["a2"], found["a1"]) == (1, 0, 0, 0)
    assert found["r2"] == 2  # its line begins at a1, below r1


def test_promotions_and_rollbacks_are_noted_and_a_rollback_is_drawn() -> None:
    moves = [
        move(1, Action.BASE, None, None),
        move(2, Action.WINDOW, None, "a1"),
        move(3, Action.PROMOTE, "a1", "a2"),
        move(4, Action.ROLLBACK, "a2", "a1"),
    ]
    drawn = draw(newest_first(adapter("a1", None), adapter("a2", "a1")), moves, "a1")
    notes = {node.version: node.notes for node in drawn.nodes}
    assert notes == {
        None: ("r1 installed",),
        "a1": ("r2 promoted by its window", "r4 rolled back to by cli"),
        "a2": ("r3 promoted by cli",),
    }
    [rollback] = [edge for edge in drawn.edges if edge.kind == "rollback"]
    assert rollback.label == "revision 4: rolled back from a2 to a1"


def test_what_is_older_than_the_drawing_is_shown_as_going_on_below() -> None:
    drawn = draw(newest_first(adapter("a8", "a7"), adapter("a9", "a8")), [], "a9", older=True)
    assert [edge.kind for edge in drawn.edges] == ["trained", "beyond"]
    assert lanes(drawn) == {"a9": 0, "a8": 0, None: 0}


def test_without_adapters_the_base_stands_alone() -> None:
    drawn = draw([], [move(1, Action.BASE, None, None)], None)
    assert [(node.version, node.serves) for node in drawn.nodes] == [(None, True)]
    assert not drawn.edges


def test_many_branches_stay_within_the_drawing() -> None:
    made = newest_first(adapter("a0", None), *(adapter(f"a{n}", "a0") for n in range(1, 40)))
    assert max(lanes(draw(made, [], None)).values()) < 12
