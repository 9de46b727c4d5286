"""Gorse's export -> files for `adaptide import`: python3 gorse.py FOLDER

Reads items and feedback from FOLDER, as Gorse's dashboard exports them: items.jsonl and feedback.jsonl, or the .csv of
older versions. Writes items.csv and events.csv here, events in order of time. Needs nothing but Python. What cannot be
used is named on standard error.
"""

import csv
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

READ = {"read"}  # feedback that only says "was shown": your read_feedback_types
"""It becomes `impression`: stored, and no interaction (ADAPTIDE_IGNORED_EVENT_TYPES)."""
TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.\d+)? ?(Z|[+-]\d\d:?\d\d)?")


Make = Callable[[dict[str, Any]], list[Any]]


def read(folder: Path, stem: str, make: Make) -> Iterator[list[Any]]:
    """What `make` makes of each row that can be used. The others are named, with their line, on standard error."""
    lines, table = folder / f"{stem}.jsonl", folder / f"{stem}.csv"
    path, parts = (lines, json_lines(lines)) if lines.exists() else (table, csv_rows(table))
    for number, parse in parts:
        try:
            made = make(parse())
            "".join(map(str, made)).encode()  # a lone surrogate cannot be written
        except (csv.Error, AttributeError, KeyError, TypeError, ValueError) as error:
            why = f"there is no {error}" if isinstance(error, KeyError) else error
            print(f"{path.name}, line {number}: {why}", file=sys.stderr)
        else:
            yield made


def json_lines(path: Path) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """Each row by names in lower case: ItemId is `itemid`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, lambda text=line: {name.lower(): value for name, value in json.loads(text).items()}


def csv_rows(path: Path) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """Each row by names without `_`: item_id is `itemid`."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file)
        names = [name.replace("_", "") for name in next(reader, [])]
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield reader.line_num, partial(fail, error)
                continue
            if fields is None:
                return
            if fields:
                yield reader.line_num, lambda found=fields: dict(zip(names, found, strict=True))


def fail(error: Exception) -> dict[str, Any]:
    raise error


def item(row: dict[str, Any]) -> list[Any]:
    """Gorse has no title: its comment is what people put there. Labels that are text describe the item to the model."""
    labels, categories = row.get("labels") or [], row.get("categories") or []
    words = (
        labels.split("|") if isinstance(labels, str) else list(labels.values() if isinstance(labels, dict) else labels)
    )
    described = ", ".join(word for word in words if isinstance(word, str))
    named = categories if isinstance(categories, str) else "|".join(categories)
    hidden = str(row.get("ishidden", "")).lower() in ("true", "1")
    title = row.get("comment") or row.get("description") or row["itemid"]
    return [row["itemid"], title, named, described, str(not hidden).lower()]


def event(row: dict[str, Any]) -> list[Any]:
    found = TIME.match(row["timestamp"])
    if found is None:
        raise ValueError(f"{row['timestamp']!r} is no time")
    day, time, zone = found.groups()
    at = datetime.fromisoformat(f"{day}T{time}{(zone or 'Z').replace('Z', '+00:00')}")
    kind = "impression" if row["feedbacktype"] in READ else row["feedbacktype"].lower()
    # Gorse has one feedback of a type, a user and an item: so the same export has the same ids, and is counted once.
    key = hashlib.sha256("\0".join([kind, row["userid"], row["itemid"]]).encode()).hexdigest()[:32]
    return [at.timestamp(), f"gorse-{key}", row["userid"], row["itemid"], kind, at.isoformat()]


def main(folder: Path) -> None:
    with Path("items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "categories", "description", "available"])
        writer.writerows(read(folder, "items", item))
    events = sorted(read(folder, "feedback", event))
    with Path("events.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["event_id", "user_id", "item_id", "event_type", "occurred_at"])
        writer.writerows(found[1:] for found in events)
    print(f"{len(events)} events")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
