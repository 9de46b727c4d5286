"""Where each adapter stands in a drawing of who was trained from whom, and which moves are drawn beside it. Pure.

As a version control tool draws history: one row for each adapter, the newest on top, the base at the bottom; a column
("lane") is a line of adapters that were trained one from the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.adapters.repository import ActivationRow, Adapter
from service.adapters.states import Action

ROW, LANE, LEFT, TOP = 40, 22, 20, 24
"""Sizes of the drawing, in its own units."""
MOST_LANES = 12
CHARACTER = 7
"""Width of a character of the drawing's text, rather too much than too little."""
SHOWN_NOTES = 3


@dataclass(frozen=True, slots=True)
class Node:
    """x, y: its place. version None: the base. notes: how it began and ceased to serve, oldest first."""

    version: str | None
    row: int
    lane: int
    adapter: Adapter | None
    serves: bool
    notes: tuple[str, ...] = ()

    @property
    def x(self) -> int:
        return LEFT + self.lane * LANE

    @property
    def y(self) -> int:
        return TOP + self.row * ROW

    @property
    def shown(self) -> tuple[str, ...]:
        """The notes that the drawing has room for; the table has all."""
        return self.notes[-SHOWN_NOTES:]

    @property
    def characters(self) -> int:
        """Of what is written beside it, gaps included."""
        window = 14 if self.adapter is not None and self.adapter.window_id is not None else 0
        return len(self.version or "the base") + window + 22 + sum(len(note) + 2 for note in self.shown)


@dataclass(frozen=True, slots=True)
class Edge:
    """A line: from a parent to its child, or what a rollback left to what it went to. path: of an SVG."""

    kind: str
    path: str
    label: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """nodes: newest first, the base last. older: adapters that are not drawn lie below. text_x: where names begin."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    lanes: int
    older: bool
    moves: tuple[ActivationRow, ...] = field(default=())

    @property
    def text_x(self) -> int:
        return LEFT + self.lanes * LANE + 18

    @property
    def width(self) -> int:
        longest = max((node.characters for node in self.nodes), default=0)
        return self.text_x + longest * CHARACTER

    @property
    def height(self) -> int:
        return TOP + len(self.nodes) * ROW


def draw(
    adapters: Sequence[Adapter], moves: Sequence[ActivationRow], serving: str | None, *, older: bool = False
) -> Lineage:
    """adapters: of one base, newest first; moves: of the pointer under this base, oldest first; serving: a version.

    A child whose parent is not among them hangs on the base, or on nothing (`older`) at the lower edge.
    """
    row_of: dict[str | None, int] = {adapter.adapter_version: i for i, adapter in enumerate(adapters)}
    row_of[None] = len(adapters)
    lane_of = _lanes(adapters, moves)
    notes = _notes(moves)
    nodes = [
        Node(
            a.adapter_version,
            row_of[a.adapter_version],
            lane_of[a.adapter_version],
            a,
            a.adapter_version == serving,
            notes.get(a.adapter_version, ()),
        )
        for a in adapters
    ]
    nodes.append(Node(None, len(adapters), 0, None, serving is None, notes.get(None, ())))
    by_version = {node.version: node for node in nodes}
    edges = [_trained(by_version, adapter, older) for adapter in adapters]
    lanes = max(lane_of.values(), default=0) + 1
    edges += _rollbacks(by_version, moves, LEFT + lanes * LANE)
    return Lineage(tuple(nodes), tuple(edges), lanes, older, tuple(moves))


def _lanes(adapters: Sequence[Adapter], moves: Sequence[ActivationRow]) -> dict[str | None, int]:
    """Version -> column. Of several children the one that served last, else the newest, stays in its parent's."""
    served = {move.to_version: move.revision for move in moves if move.to_version is not None}
    heir: dict[str | None, str] = {}
    for adapter in reversed(adapters):  # oldest first, so the newest of equals stays
        rival = heir.get(adapter.parent_version)
        if rival is None or served.get(adapter.adapter_version, 0) >= served.get(rival, 0):
            heir[adapter.parent_version] = adapter.adapter_version
    lane_of: dict[str | None, int] = {None: 0}
    tops: list[int] = [len(adapters)]  # the row up to which a column is taken
    newest_of = _newest_descendants(adapters)
    row_of: dict[str | None, int] = {adapter.adapter_version: row for row, adapter in enumerate(adapters)}
    for row in range(len(adapters) - 1, -1, -1):
        adapter = adapters[row]
        parent_lane = lane_of.get(adapter.parent_version)
        if parent_lane is not None and heir[adapter.parent_version] == adapter.adapter_version:
            lane = parent_lane
        else:
            below = row_of.get(adapter.parent_version, len(adapters))  # its line begins there
            first = 1 if adapter.parent_version in lane_of else 0
            lane = next((i for i, top in enumerate(tops) if i >= first and top >= below), len(tops))
            lane = min(lane, MOST_LANES - 1)
            while lane >= len(tops):
                tops.append(len(adapters))
        lane_of[adapter.adapter_version] = lane
        tops[lane] = min(tops[lane], newest_of[adapter.adapter_version])
    return lane_of


def _newest_descendants(adapters: Sequence[Adapter]) -> dict[str, int]:
    """Version -> the row of the newest adapter that comes from it, itself included."""
    newest: dict[str, int] = {}
    for row, adapter in enumerate(adapters):
        own = newest.setdefault(adapter.adapter_version, row)
        if adapter.parent_version is not None:
            newest[adapter.parent_version] = min(own, newest.get(adapter.parent_version, own))
    return newest


def _notes(moves: Sequence[ActivationRow]) -> Mapping[str | None, tuple[str, ...]]:
    notes: dict[str | None, tuple[str, ...]] = {}
    for move in moves:
        by = "by its window" if move.action is Action.WINDOW else f"by {move.actor}"
        what = {
            Action.BASE: f"r{move.revision} installed{' with its base' if move.to_version else ''}",
            Action.PROMOTE: f"r{move.revision} promoted {by}",
            Action.WINDOW: f"r{move.revision} promoted {by}",
            Action.ROLLBACK: f"r{move.revision} rolled back to {by}",
        }[move.action]
        notes[move.to_version] = (*notes.get(move.to_version, ()), what)
    return notes


def _trained(by_version: Mapping[str | None, Node], adapter: Adapter, older: bool) -> Edge:
    child = by_version[adapter.adapter_version]
    label = f"{adapter.adapter_version} was trained from {adapter.parent_version or 'the base'}"
    parent = by_version.get(adapter.parent_version)
    if parent is None:  # further down than what is drawn
        base = by_version[None]
        end = base.y - ROW // 2 if older else base.y
        return Edge("beyond", f"M{child.x} {child.y}V{end}", label)
    if parent.lane == child.lane:
        return Edge("trained", f"M{parent.x} {parent.y}V{child.y}", label)
    bend = parent.y - ROW
    curve = f"M{parent.x} {parent.y}C{parent.x} {parent.y - ROW // 2} {child.x} {parent.y - ROW // 2} {child.x} {bend}"
    return Edge("trained", curve + (f"V{child.y}" if bend != child.y else ""), label)


def _rollbacks(by_version: Mapping[str | None, Node], moves: Sequence[ActivationRow], x: int) -> list[Edge]:
    edges = []
    for move in moves:
        left, to = by_version.get(move.from_version), by_version.get(move.to_version)
        if move.action is not Action.ROLLBACK or left is None or to is None:
            continue
        out = x + 14
        path = f"M{left.x + 9} {left.y}H{x - 6}C{out} {left.y} {out} {to.y} {x - 6} {to.y}H{to.x + 11}"
        names = [version or "the base" for version in (move.from_version, move.to_version)]
        label = f"revision {move.revision}: rolled back from {names[0]} to {names[1]}"
        edges.append(Edge("rollback", path, label))
    return edges
