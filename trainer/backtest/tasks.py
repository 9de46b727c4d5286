"""What a backtest runs: one task for each method, variant of its settings and seed. Pure."""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from service.adapters.lora import MAX_RANK
from service.errors import InvalidRequest
from service.settings import Settings
from trainer.names import LORA_METHODS, RANKERS, TWO_TOWER

PROXIMAL = ("peso", "l2", "orthogonal", "output-kl", "rank-kl")
METHODS = ("popularity", *RANKERS, *LORA_METHODS)
GROUPS = {
    "all": METHODS,
    "lora": LORA_METHODS,
    "two-tower": TWO_TOWER,
    "regularisers": ("single-evolving", *PROXIMAL),
    "table1": (
        "single-evolving",
        "sum-lora-all",
        "sum-lora-latest",
        "sum-lora-all-inherit",
        "sum-lora-latest-inherit",
        "sd-lora-latest-inherit",
    ),
}


class Sweep(StrEnum):
    """What a variant changes, and what its values are called in results."""

    LAMBDA = "lambda"
    RATIO = "ratio"
    LEARNING_RATE = "learning_rate"
    RANK = "rank"
    GROUP_BY = "group_by"


# Figures 3 and 4 of the paper vary PESO, figure 4 single evolving LoRA as well; a ratio makes regularisers comparable.
# The rank, which the paper keeps at 8, decides how far any adapter can go.
_SWEPT = {
    Sweep.LAMBDA: ("peso",),
    Sweep.RATIO: PROXIMAL,
    Sweep.LEARNING_RATE: ("single-evolving", "peso"),
    Sweep.RANK: ("single-evolving", "peso"),
    Sweep.GROUP_BY: ("peso",),
}


@dataclass(frozen=True, slots=True)
class Task:
    """variant: None for the method as the settings have it."""

    method: str
    seed: int
    variant: tuple[Sweep, float | str] | None = None

    @property
    def name(self) -> str:
        """Names its folder: `peso.lambda=5.0.seed-0`."""
        changed = f".{self.variant[0]}={self.variant[1]}" if self.variant else ""
        return f"{self.method}{changed}.seed-{self.seed}"

    def settings(self, common: Settings) -> Settings:
        """The settings that this task runs under."""
        changes: dict[str, object] = {"method": self.method, "seed": self.seed}
        match self.variant:
            case (Sweep.LAMBDA, value):
                changes |= {"proximal_weight": float(value), "proximal_relative": False}
            case (Sweep.RATIO, value):
                changes |= {"proximal_weight": float(value), "proximal_relative": True}
            case (Sweep.LEARNING_RATE, value):
                changes |= {"learning_rate_update": float(value)}
            case (Sweep.RANK, value):  # the scale alpha / r stays
                changes |= {"lora_rank": int(value), "lora_alpha": _alpha(common, int(value))}
            case (Sweep.GROUP_BY, value):
                changes |= {"proximal_group_by": value}
        return Settings.model_validate({**common.model_dump(), **changes})


def _alpha(common: Settings, rank: int) -> int:
    alpha, rest = divmod(common.lora_alpha * rank, common.lora_rank)
    if rest:
        raise InvalidRequest(
            f"--ranks {rank} would change the scale of the adapter as well: alpha / r is {common.lora_alpha} / "
            f"{common.lora_rank}, and alpha is a whole number; give another rank, or another ADAPTIDE_LORA_ALPHA"
        )
    return alpha


@dataclass(frozen=True, slots=True)
class Plan:
    """methods: names, in order. Every sweep applies to those of them for which it means something."""

    methods: tuple[str, ...]
    seeds: int
    sweeps: dict[Sweep, tuple[float | str, ...]] = field(default_factory=dict)

    def tasks(self) -> list[Task]:
        """Seed by seed, so that a run that is cut short leaves whole comparisons."""
        variants: list[tuple[str, tuple[Sweep, float | str] | None]] = [(method, None) for method in self.methods]
        for sweep, values in self.sweeps.items():
            swept = _SWEPT[sweep]
            variants += [(m, (sweep, value)) for m in self.methods if m in swept for value in values]
        return [Task(method, seed, variant) for seed in range(self.seeds) for method, variant in variants]


def parse_methods(names: str) -> tuple[str, ...]:
    """Names and groups, separated by commas, each once. Raises InvalidRequest listing what there is."""
    chosen: list[str] = []
    for name in filter(None, re.split(r"[\s,]+", names.strip())):
        if name not in GROUPS and name not in METHODS:
            raise InvalidRequest(
                f"method {name!r} is not known; methods: {', '.join(METHODS)}; groups: {', '.join(GROUPS)}"
            )
        chosen += GROUPS.get(name, (name,))
    if not chosen:
        raise InvalidRequest(f"no method is named; methods: {', '.join(METHODS)}; groups: {', '.join(GROUPS)}")
    return tuple(dict.fromkeys(chosen))


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers above 0, separated by commas. Raises InvalidRequest."""
    try:
        numbers = tuple(float(part) for part in filter(None, text.split(",")))
    except ValueError as error:
        raise InvalidRequest(f"{option} takes numbers separated by commas, not {text!r}") from error
    if any(not 0 < number < 1e9 for number in numbers):
        raise InvalidRequest(f"{option} takes numbers above 0 and below 1e9, not {text!r}")
    return tuple(dict.fromkeys(numbers))


def parse_ranks(text: str, option: str) -> tuple[float, ...]:
    """As parse_numbers, whole ones up to the largest rank of an adapter that is served."""
    numbers = parse_numbers(text, option)
    if wrong := [number for number in numbers if number != int(number) or number > MAX_RANK]:
        raise InvalidRequest(f"{option} takes whole numbers up to {MAX_RANK}, not {wrong[0]:g}")
    return tuple(int(number) for number in numbers)
