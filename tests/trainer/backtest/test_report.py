"""Tables, plots and the page: what they hold, and that nothing in the data can become markup."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.trainer.backtest.results import raw, task
from trainer.backtest.plots import plots
from trainer.backtest.report import markdown, summarise, unfinished, write_report
from trainer.backtest.tables import duration, size, tables

HOSTILE = '</h1><script>alert("$1$")</script>|*`&\n<img src=x onerror=y>'
ACROSS = {block: {1: [1, 0], 2: [1, 3], 3: [3, 0]} for block in (2, 3)}


def full(name: str = "small") -> dict[str, Any]:
    """A task of every kind that a table or plot shows."""
    ranks = {2: [1, 3], 3: [3, 0]}
    variants: list[tuple[str, dict[str, Any]]] = [
        ("peso", {"lambda": 5.0}),
        ("peso", {"lambda": 50.0}),
        ("peso", {"ratio": 0.1}),
        ("peso", {"learning_rate": 0.1}),
        ("single-evolving", {"learning_rate": 0.1}),
        ("single-evolving", {"rank": 32}),
        ("peso", {"group_by": "module"}),
    ]
    names = ["popularity", "pretrain", "single-evolving", "sum-lora-all", "sd-lora-latest-inherit", "peso", "l2"]
    users = ["u0", "u1"]
    asked = {block: [("u0", 1), ("u0", 3), ("u1", 0)] for block in (2, 3)}
    groups = {str(b): {"users": users, "drift": [0.1, 0.2], "history": [1, 2]} for b in (2, 3)}
    return raw(
        *(task(method, seed, ranks, across=ACROSS, prequential=asked) for seed in (0, 1) for method in names),
        *(task(m, seed, ranks, v, ratio=[0.01], weight=5.0, prequential=asked) for seed in (0, 1) for m, v in variants),
        name=name,
        groups=groups,
        prequential_groups=groups,
    )


def page(results: dict[str, Any], folder: Path) -> str:
    write_report(results, summarise(results), folder)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a full report, drawn once: plots take a second."""
    folder = tmp_path_factory.mktemp("report")
    page(full(), folder)
    return folder


class Tags(HTMLParser):
    """Collects tags and the text outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_every_table_and_plot(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    for key in (
        "main",
        "blocks",
        "prequential",
        "design",
        "sweeps",
        "groups",
        "prequential-groups",
        "forgetting",
        "training",
        "setting",
    ):
        assert f"<section id='{key}'>" in text
    names = [
        "forgetting",
        "gains",
        "lambda-sweep",
        "learning-curve",
        "learning-rate-sweep",
        "rank-sweep",
        "ratio-sweep",
    ]
    asked = [f"{name}-next-items" for name in names if name != "forgetting"]
    assert {path.stem for path in (written / "plots").glob("*.svg")} == {*names, "regularisers", *asked}
    assert text.count("<svg ") == len(names) + 1 + len(asked)


def test_the_page_takes_nothing_from_outside_and_runs_nothing(written: Path) -> None:
    tags = Tags((written / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.names)
    assert all(address.startswith("#") for address in tags.addresses)


def test_the_page_follows_the_readers_theme_and_screen(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "var(--ink)" in text
    assert "#010203" not in text


def test_no_id_occurs_twice_on_the_page(written: Path) -> None:
    ids = Tags((written / "report.html").read_text(encoding="utf-8")).ids
    assert len(ids) == len(set(ids))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = full(HOSTILE)
    hostile["settings"] = {HOSTILE: HOSTILE}
    hostile["tasks"] += [
        task(HOSTILE, seed, {2: [1, 3], 3: [3, 0]}, variant, across=ACROSS)
        for seed in (0, 1)
        for variant in ({}, {HOSTILE: HOSTILE}, {"lambda": 8.0})
    ]
    text = page(hostile, tmp_path)
    tags = Tags(text)
    assert not {"script", "img"} & set(tags.names)
    assert HOSTILE.splitlines()[0] in tags.text
    for path in (tmp_path / "plots").glob("*.svg"):
        names = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}  # noqa: S314  # our own
        assert not {"script", "img"} & names


def test_hostile_names_break_no_markdown_table() -> None:
    results = summarise(raw(task(HOSTILE, 0, {2: [1], 3: [3]})))
    row = next(line for line in markdown(results).splitlines() if "script" in line)
    assert "<" not in row
    assert len(re.findall(r"(?<!\\)\|", row)) == 12
    assert "\\|\\*\\`&amp; &lt;img" in row


def test_one_task_is_enough_for_a_page(tmp_path: Path) -> None:
    text = page(raw(task("popularity", 0, {2: [1], 3: [0]})), tmp_path)
    assert "1 method, 1 seed, 2 blocks after D₁." in text
    assert [path.stem for path in (tmp_path / "plots").glob("*.svg")] == ["learning-curve"]


def test_losses_that_were_no_numbers_are_left_out(tmp_path: Path) -> None:
    results = raw(task("peso", 0, {2: [1], 3: [1]}))
    for block, losses in zip(results["tasks"][0]["blocks"], ([None, None], [None, 2.5, 1.25]), strict=True):
        block["losses"] = losses
    assert "2.500 → 1.250" in page(results, tmp_path)


def test_no_task_is_enough_for_a_page(tmp_path: Path) -> None:
    text = page(raw(planned=2), tmp_path)
    assert "0 of 2 tasks are done" in text
    assert "Nothing has been learnt yet." in text


def test_missing_seeds_are_marked_on_the_page_and_in_markdown(tmp_path: Path) -> None:
    part = raw(
        *(task("single-evolving", seed, {2: [3], 3: [3]}) for seed in (0, 1)), task("peso", 0, {2: [1]}), planned=4
    )
    text = page(part, tmp_path)
    assert "2 of 4 tasks are done" in text
    assert "<th scope='row'>peso *</th>" in text
    assert "<th scope='row'>single-evolving</th>" in text
    assert "| peso \\* | 1.0000 |" in markdown(summarise(part)).replace("**", "")


def test_what_is_not_done_is_marked_among_groups_too_and_is_not_the_best() -> None:
    groups = {str(b): {"users": ["u0", "u1"], "drift": [0.1, 0.9], "history": [0, 4]} for b in (2, 3)}
    part = raw(
        task("single-evolving", 0, {2: [3, 3], 3: [3, 3]}),
        task("peso", 0, {2: [1, 1]}),
        groups=groups,
        planned=2,
        not_begun=["l2"],
    )
    shown = markdown(summarise(part))
    assert "| single-evolving | **1.0000** |" in shown
    assert "| peso \\* | 1.0000 |" in shown
    (row,) = [line for line in shown.split("### Who gains")[1].splitlines() if line.startswith("| peso")]
    assert row.startswith("| peso \\* |")


def test_what_is_missing_is_named() -> None:
    results = summarise(raw(task("peso", 0, {2: [1]}), planned=2, not_begun=["l2", "sasrec"]))
    assert "Nothing is there yet of l2, sasrec." in unfinished(results)


@pytest.mark.parametrize(
    ("peso", "verdict"),
    [(1, "better than"), (0, "worse than"), (3, "not distinguishable from")],
)
def test_the_first_sentence_says_what_came_out(tmp_path: Path, peso: int, verdict: str) -> None:
    asked = {block: [("u0", 3)] for block in (2, 3)}, {block: [("u0", peso)] for block in (2, 3)}
    single = task("single-evolving", 0, {2: [3], 3: [3]}, prequential=asked[0])
    text = page(raw(single, task("peso", 0, {2: [peso], 3: [peso]}, prequential=asked[1])), tmp_path)
    assert f"PESO as set here is {verdict} single-evolving" in text
    assert f"On next items it is {verdict} it" in text


def test_markdown_has_the_gain_with_its_interval_and_the_best_in_bold() -> None:
    results = summarise(raw(task("single-evolving", 0, {2: [3], 3: [3]}), task("peso", 0, {2: [1], 3: [1]})))
    row = next(line for line in markdown(results).splitlines() if line.startswith("| peso"))
    assert row == (
        "| peso | **1.0000** | **1.0000** | **1.0000** | **1.0000** | +0.5000 (+100.0 %) | +0.5000 to +0.5000 "
        "| 4.0 s | 1,000 | 4.0 kB | – |"
    )


def test_next_items_stand_with_their_blocks_and_mean() -> None:
    (table,) = [table for table in tables(summarise(full())) if table.key == "prequential"]
    (row,) = [row for row in table.rows if row[0].text == "peso"]
    assert [cell.text for cell in row[:4]] == ["peso", "0.3750", "0.3750", "0.3750"]  # u0: 1 and 1/2, u1: 0


def test_the_design_table_says_what_each_cumulative_method_does() -> None:
    rows = [line for line in markdown(summarise(full())).splitlines() if line.startswith(("| sum-", "| sd-"))]
    assert [row for row in rows if row.startswith("| sum-lora-all | no | no | no |")]
    assert [row for row in rows if row.startswith("| sd-lora-latest-inherit | yes | yes | yes |")]


def test_the_same_results_draw_the_same_bytes(written: Path, tmp_path: Path) -> None:
    page(full(), tmp_path)
    for path in (written / "report.html", *(written / "plots").iterdir()):
        assert (tmp_path / path.relative_to(written)).read_bytes() == path.read_bytes()


def test_a_plot_alone_is_valid_svg_with_both_themes(written: Path) -> None:
    svg = (written / "plots" / "gains.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(svg).tag.endswith("svg")  # noqa: S314  # our own
    assert "prefers-color-scheme:dark" in svg
    assert "date>" not in svg


def test_dollar_signs_and_ids_in_names_are_drawn_as_they_are() -> None:
    results = summarise(raw(task('$x$ id="a', 0, {2: [1], 3: [3]}), task("single-evolving", 0, {2: [1], 3: [3]})))
    root = ElementTree.fromstring(plots(results)["gains"])  # noqa: S314  # our own
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert any(text and text.startswith("$x$") for text in texts)


def test_without_matplotlib_the_page_says_how_to_get_the_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    text = page(full(), tmp_path)
    assert "pip install &#x27;adaptide[backtest]&#x27;" in text
    assert "<svg" not in text


@pytest.mark.parametrize(("seconds", "text"), [(1.25, "1.2 s"), (90.0, "90 s"), (600.0, "10 min"), (9_000.0, "2.5 h")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("stored", "text"),
    [(0, "0 B"), (999, "999 B"), (4_000, "4.0 kB"), (2_500_000, "2.5 MB"), (3_100_000_000, "3.1 GB")],
)
def test_sizes_are_short(stored: int, text: str) -> None:
    assert size(stored) == text
