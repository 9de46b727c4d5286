"""docs/examples/gorse.py turns both forms of Gorse's export into what `adaptide import` takes."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import DOCS

JSON_LINES = {
    "items.jsonl": [
        {
            "ItemId": "i1",
            "IsHidden": False,
            "Categories": ["tools", "red"],
            "Labels": {"of": "steel"},
            "Comment": "Saw",
        },
        {"ItemId": "i2", "IsHidden": True, "Categories": None, "Labels": ["soft", 3], "Comment": ""},
    ],
    "feedback.jsonl": [
        {"FeedbackType": "Star", "UserId": "u1", "ItemId": "i2", "Timestamp": "2024-02-01T10:00:00.5+02:00"},
        {"FeedbackType": "read", "UserId": "u1", "ItemId": "i1", "Timestamp": "2024-02-01T07:00:00Z"},
    ],
}
TABLES = {
    "items.csv": "item_id,time_stamp,labels,description\r\ni1,2024-01-01 00:00:00 +0000 UTC,steel,Saw\r\ni2,,soft,\r\n",
    "feedback.csv": "feedback_type,user_id,item_id,time_stamp\r\n"
    "Star,u1,i2,2024-02-01 10:00:00.5 +0200 CEST\r\nread,u1,i1,2024-02-01 07:00:00 +0000 UTC\r\n",
}


def converted(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    line = [sys.executable, DOCS / "examples" / "gorse.py", "export"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [list(csv.DictReader((folder / name).read_text().splitlines())) for name in ("items.csv", "events.csv")]
    return found[0], found[1]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    (tmp_path / "export").mkdir()
    return tmp_path / "export"


def check(events: list[dict[str, str]]) -> None:
    """Both forms say the same."""
    assert [(e["event_type"], e["user_id"], e["item_id"], e["occurred_at"]) for e in events] == [
        ("impression", "u1", "i1", "2024-02-01T07:00:00+00:00"),
        ("star", "u1", "i2", "2024-02-01T10:00:00+02:00"),  # an hour later
    ]
    assert len({e["event_id"] for e in events}) == 2


def test_json_lines(export: Path) -> None:
    for name, rows in JSON_LINES.items():
        (export / name).write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
    items, events = converted(export.parent)
    assert items == [
        {"item_id": "i1", "title": "Saw", "categories": "tools|red", "description": "steel", "available": "true"},
        {"item_id": "i2", "title": "i2", "categories": "", "description": "soft", "available": "false"},
    ]
    check(events)


def test_the_tables_of_older_versions(export: Path) -> None:
    for name, text in TABLES.items():
        (export / name).write_text(text)
    items, events = converted(export.parent)
    assert [(item["item_id"], item["title"], item["description"]) for item in items] == [
        ("i1", "Saw", "steel"),
        ("i2", "i2", "soft"),
    ]
    check(events)


def test_the_same_export_has_the_same_ids(export: Path) -> None:
    for name, text in TABLES.items():
        (export / name).write_text(text)
    assert converted(export.parent)[1] == converted(export.parent)[1]


@pytest.mark.parametrize("form", [JSON_LINES, TABLES], ids=["jsonl", "csv"])
def test_rows_that_cannot_be_used_are_named_and_the_others_go_on(export: Path, form: dict[str, Any]) -> None:
    wrong = {
        "items.jsonl": [b'{"Comment": "no id"}', b"[1]", b'{"ItemId": "\xff"}', b'{"ItemId": "\\ud800"}'],
        "feedback.jsonl": [
            b'{"FeedbackType": null, "UserId": "u", "ItemId": "i", "Timestamp": "2024-01-01T00:00:00Z"}',
            b'{"FeedbackType": "star", "UserId": "u", "ItemId": "i", "Timestamp": "soon"}',
        ],
        "items.csv": [b"i3,short", b"i\xff,,,"],
        "feedback.csv": [b"star,u,i,soon", b"star,u,i,2024-13-01 00:00:00", b"star,u,i,2024-01-01 00:00:00,more"],
    }
    for name, rows in form.items():
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        lines = text.encode().splitlines()
        # Wrong ones in between: behind the header of a table.
        (export / name).write_bytes(b"\n".join([lines[0], *wrong[name], *lines[1:]]) + b"\n")
    line = [sys.executable, DOCS / "examples" / "gorse.py", "export"]
    done = subprocess.run(line, cwd=export.parent, capture_output=True, text=True, check=True)
    named = [said.partition(":")[0] for said in done.stderr.splitlines()]
    assert named == [f"{name}, line {at}" for name in form for at in range(2, 2 + len(wrong[name]))]
    check(list(csv.DictReader((export.parent / "events.csv").read_text().splitlines())))
    items = list(csv.DictReader((export.parent / "items.csv").read_text().splitlines()))
    assert [item["item_id"] for item in items] == ["i1", "i2"]
