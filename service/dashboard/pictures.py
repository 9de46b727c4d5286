"""Geometry of the drawings that a page carries as SVG; colours are classes of static/details.css. Pure."""

from dataclasses import dataclass

from service.adapters.movement import Against, Movement
from service.catalog.usage import LevelUsage

CELL_WIDTH, CELL_HEIGHT, LEFT, TOP = 76, 28, 64, 26
HEATS = 8
STRIP_WIDTH, STRIP_HEIGHT, BAR = 768, 44, 3


@dataclass(frozen=True, slots=True)
class Cell:
    """heat: 0 to HEATS, -1 where there is no value; text: the value as it is written in the cell."""

    layer: int
    module: str
    value: float | None
    heat: int
    text: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A movement as a grid: layers down, modules across. summary: the same in a sentence."""

    layers: tuple[int, ...]
    modules: tuple[str, ...]
    rows: tuple[tuple[Cell | None, ...], ...]
    summary: str

    @property
    def width(self) -> int:
        return LEFT + len(self.modules) * CELL_WIDTH

    @property
    def height(self) -> int:
        return TOP + len(self.layers) * CELL_HEIGHT

    def label_x(self, column: int) -> int:
        return LEFT + column * CELL_WIDTH + CELL_WIDTH // 2

    def label_y(self, row: int) -> int:
        return TOP + row * CELL_HEIGHT + 19


def heat_map(movement: Movement) -> HeatMap:
    """Heat by share of the largest value."""
    highest = movement.highest
    rows = []
    for down, layer in enumerate(movement.layers):
        row: list[Cell | None] = []
        for across, module in enumerate(movement.modules):
            if (layer, module) not in movement.values:
                row.append(None)
                continue
            value = movement.values[layer, module]
            heat = -1 if value is None else round(HEATS * value / highest) if highest else 0
            text = "new" if value is None else written(value, movement.against)
            x, y = LEFT + across * CELL_WIDTH, TOP + down * CELL_HEIGHT
            row.append(Cell(layer, module, value, heat, text, x, y))
        rows.append(tuple(row))
    return HeatMap(movement.layers, movement.modules, tuple(rows), _summary(movement))


def written(value: float, against: Against) -> str:
    if against is Against.NOTHING:
        return f"{value:.3g}"
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1f} %" if value >= 0.001 else "0 %"


def _summary(movement: Movement) -> str:
    known = {place: value for place, value in movement.values.items() if value is not None}
    if not known:
        return "Nothing can be compared."
    most, least = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
    mean = sum(known.values()) / len(known)
    if known[most] - known[least] <= 1e-5 * known[most]:
        return f"All alike: {written(mean, movement.against)}."

    def named(place: tuple[int, str]) -> str:
        layer, module = place
        where = module if layer < 0 else f"{module} of layer {layer}"
        return f"{where} ({written(known[place], movement.against)})"

    return f"Most: {named(most)}; least: {named(least)}; on average {written(mean, movement.against)}."


def strip(usage: LevelUsage) -> str:
    """The path of a strip of bars, one for each code, the most used code at full height."""
    most = int(usage.counts.max(initial=0))
    if not most:
        return ""
    heights = [(code, max(1.0, STRIP_HEIGHT * n / most)) for code, n in enumerate(usage.counts.tolist()) if n]
    return "".join(f"M{code * BAR + BAR / 2:g} {STRIP_HEIGHT}v-{height:.1f}" for code, height in heights)
