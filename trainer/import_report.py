"""What became of a file's rows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import DatasetError

KEPT = 1_000  # refusals in the report and in --json
HOPELESS = 100_000  # rows refused and none imported


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was not imported. line: as Row counts."""

    line: int
    code: str
    detail: str


@dataclass(slots=True)
class ImportReport:
    """outcomes: how many were created, updated or unchanged (items), accepted or duplicates (events).

    refusals: the first 1,000 of `refused`; each is told to on_refusal. skipped: of the duplicates, those that were
    known by their name alone. unknown_items: accepted events whose item is not in the catalogue (yet). out_of_order:
    events that lie before the row above them. cut_off: why the file ended too early; what came before was imported.
    """

    outcomes: dict[str, int]
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    ignored_columns: list[str] = field(default_factory=list)
    skipped: int = 0
    unknown_items: int = 0
    out_of_order: int = 0
    cut_off: str | None = None
    on_refusal: Callable[[Refusal], None] = field(default=lambda refusal: None, repr=False, compare=False)

    @property
    def imported(self) -> int:
        """Rows that the store now holds, from this run or an earlier one."""
        return sum(self.outcomes.values())

    def give_up_on(self, path: Path) -> None:
        """Raises DatasetError once so many rows were refused and none was imported that no other will be."""
        if self.refused >= HOPELESS and not self.imported:
            last = self.refusals[-1]
            raise DatasetError(
                f"{path}: all of the first {self.refused:,} rows were refused, such as that of line {last.line} "
                f"({last.detail[:200]}); is it this --format, --map, --delimiter and --encoding?"
            )

    def refuse(self, line: int, code: str, detail: str) -> None:
        refusal = Refusal(line, code, detail)
        self.refused += 1
        self.on_refusal(refusal)
        if len(self.refusals) < KEPT:
            self.refusals.append(refusal)
