"""Progress bars on standard error, one line a step, with elapsed and remaining time."""

from collections.abc import Iterator
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

from trainer.learn import Report


@contextmanager
def bars(console: Console | None = None) -> Iterator[Report]:
    """A Report that draws; on a terminal live, otherwise one line when a step ends."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
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
