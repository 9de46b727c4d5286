"""`adaptide replay RECOMMENDATION_ID`: a past recommendation explained and computed again."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.adapters.place import open_artifacts
from service.cli import Json, opened, print_json
from service.recommend.replay import Replay
from service.recommend.replay import replay as compute_again
from service.recommend.schemas import StoredRecommendation
from service.settings import load_settings
from service.telemetry import configure_logging


def replay(
    recommendation_id: Annotated[str, typer.Argument(help="As the reply named it.")],
    explain: Annotated[bool, typer.Option("--explain", help="Say of each item why it was recommended.")] = False,
    as_json: Json = False,
) -> None:
    """Compute a past recommendation again: the catalogue, the user's past and the model as they were. Exit status 0
    when it is the same to the last bit, 1 when not."""
    settings = load_settings()
    configure_logging("WARNING")
    with opened(settings) as database:
        found = compute_again(database, open_artifacts(settings), settings, recommendation_id, explain=explain)
    if as_json:
        print_json(shown(found, explain=explain))
    else:
        _print(found, explain=explain)
    raise typer.Exit(0 if found.identical else 1)


def shown(found: Replay, *, explain: bool) -> dict[str, Any]:
    """The JSON document of the command."""
    again = None
    if found.now is not None:
        again = [
            {"item_id": item.item_id, "rank": item.rank, "score": item.score}
            | ({"title": item.title, "reasons": item.reasons} if explain else {})
            for item in found.now.items
        ]
    return {
        "identical": found.identical,
        "largest_score_difference": found.largest_score_difference,
        "impossible": found.impossible,
        "notes": found.notes,
        "recommendation": StoredRecommendation.of(found.row).model_dump(),
        "catalogue": dict(found.catalogue),
        "past": dict(found.past),
        "items_again": again,
    }


def _print(found: Replay, *, explain: bool) -> None:
    row, console = found.row, Console(soft_wrap=True, highlight=False)
    made = f"{row['created_at']:%Y-%m-%d %H:%M:%S} UTC"
    whose = f"user {row['user_id']}" if row["user_id"] else "nobody in particular"
    model = f"base {row['base_id']}, adapter {row['adapter_version'] or 'none'}" if row["base_id"] else "no model"
    why = f" ({row['fallback_reason']})" if row["fallback_reason"] else ""
    lines = [
        f"recommendation {row['recommendation_id']}, made {made} for {whose}",
        f"  asked for: {row['request'] if row['request'] is not None else 'not kept'}",
        f"  strategy: {row['strategy']}{why}, {model}",
        f"  catalogue revision {row['catalog_revision']}: " + (_facts(found.catalogue) or "not read"),
        f"  the model was shown: {', '.join(row['history']) or 'nothing'}",
    ]
    if found.past:
        lines.append(f"  the user's past: {_facts(found.past)}")
    for line in lines:
        console.print(line, markup=False)
    console.print(_table(found, explain=explain))
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    console.print(_verdict(found), markup=False)


def _table(found: Replay, *, explain: bool) -> Table:
    table = Table("rank", "then", "score", "again", "score", *(["why"] if explain else []), box=None)
    again = found.now.items if found.now else []
    for place in range(max(len(found.then), len(again))):
        before = found.then[place] if place < len(found.then) else None
        after = again[place] if place < len(again) else None
        cells = [before[0], repr(before[1])] if before else ["-", "-"]
        cells += [after.item_id, repr(after.score)] if after else ["-", "-"]
        if explain:
            cells.append("; ".join((after.reasons if after else None) or ["-"]))
        table.add_row(str(place + 1), *cells)
    return table


def _verdict(found: Replay) -> str:
    if found.impossible is not None:
        return f"it cannot be computed again: {found.impossible}"
    if found.identical:
        return "identical: the same items, the same scores to the last bit"
    difference = found.largest_score_difference
    same = [item for item, _ in found.then] == [item for item, _ in found.again or []]
    what = "the same items in the same order" if same else "other items, or another order"
    return f"NOT identical: {what}; largest difference of a score: {'-' if difference is None else f'{difference:.3g}'}"


def _facts(facts: Any) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
