"""Progress: what a long step says of itself, and bars on standard error with elapsed and remaining time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from service.errors import Unavailable

Report = Callable[[str, int, int], None]  # (step's name, done, total)


class Stopped(Unavailable):
    """Raised through a Report by whoever wants the work left where it is: it is no failure of the work."""


def silent(step: str, done: int, total: int) -> None:
    """A Report that says nothing."""


class Said:
    """What a step last said of itself, so that it can be said again: the work goes on, though nothing more is done."""

    def __init__(self, report: Report, step: str) -> None:
        self._report, self._step, self._last = report, step, (0, 1)

    def __call__(self, done: int, total: int) -> None:
        self._last = done, total
        self.again()

    def again(self) -> None:
        self._report(self._step, *self._last)


@contextmanager
def bars(console: Console | None = None) -> Iterator[Report]:
    """A Report that draws: on a terminal live, otherwise all at the end."""
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True), refresh_per_second=4) as progress:
        tasks: dict[str, TaskID] = {}
        finished: set[str] = set()

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks or (step in finished and done < total):
                tasks[step] = progress.add_task(step, total=total)
                finished.discard(step)
            progress.update(tasks[step], total=total, completed=done)
            if done >= total:
                finished.add(step)

        yield report
