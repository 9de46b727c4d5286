"""Every command of the README and of docs/ is run, page by page, in a shell of its own; what is not says why."""

import csv
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.kit import migrate
from service.kit.db import Database
from tests import worlds
from tests.docs.pages import ROOT, Block, blocks_in, is_record, pages, shell_blocks, starts_empty
from tests.docs.pip import problems
from tests.docs.session import Session

if TYPE_CHECKING:
    from tests.built import BuiltWorld

MOST_NOT_RUN = 16
"""A block more that is not run is a decision."""
FIRST_DAY = 1_700_000_000
REASONS = re.compile(r"^(docker|kubernetes|gpu|bucket|long|another server|package index): \S")

ELSEWHERE = {ROOT / "docs" / "data.md"}
"""Its blocks are files, too, and its commands say what they answer: tests/examples/test_pages.py."""
READ = [
    page
    for page in pages()
    if not is_record(page) and page not in ELSEWHERE and any(block.not_run is None for block in shell_blocks(page))
]


@pytest.fixture(scope="module")
def home(built_world: "BuiltWorld", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which a base serves."""
    folder = tmp_path_factory.mktemp("reader") / "home"
    folder.mkdir()
    database = Database(f"sqlite:///{folder / 'adaptide.db'}")
    migrate.upgrade(database)
    built_world.copy_into(database, folder / "artifacts")
    database.close()
    return folder


@pytest.mark.e2e
@pytest.mark.timeout(1600)  # a minute on an idle machine
@pytest.mark.parametrize("page", READ, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_works(page: Path, home: Path, tmp_path: Path) -> None:
    if not starts_empty(page):
        shutil.copytree(home, tmp_path / ".adaptide")
    files(tmp_path)
    session = Session(tmp_path)
    ran = session.run([block for block in shell_blocks(page) if block.not_run is None], timeout=1500)
    assert ran.status == 0, f"the block at {ran.last} failed\n{ran.output[-6000:]}\n{session.logs()[-3000:]}"
    assert ran.last == "end", f"{ran.last} ended the shell"
    assert "Traceback" not in ran.output + session.logs()


def test_what_is_not_run_says_why_and_is_little() -> None:
    skipped = [block for page in pages() if not is_record(page) for block in shell_blocks(page) if block.not_run]
    assert [f"{block.where}: {block.not_run}" for block in skipped if not REASONS.match(block.not_run or "")] == []
    assert len(skipped) <= MOST_NOT_RUN, "\n".join(f"{block.where}: {block.not_run}" for block in skipped)


def test_a_block_knows_what_is_said_above_it() -> None:
    first, second = blocks_of(
        "<!-- before: N=1 -->\n<!-- not run: docker: no engine -->\n\n```sh\na N\n```\ntext\n"
        "```console\n$ b\nout\n```\n"
    )
    assert (first.before, first.not_run, first.commands, first.line) == ("N=1", "docker: no engine", "a N", 5)
    assert (second.before, second.not_run, second.commands) == ("", None, "b")


def test_indented_commands_are_a_block_too() -> None:
    (block,) = blocks_of("text\n\n<!-- not run: long: hours -->\n    adaptide a\n    adaptide b\n\n    a picture\n")
    assert (block.commands, block.not_run, block.line) == ("adaptide a\nadaptide b", "long: hours", 4)


def test_a_block_that_fails_is_named(tmp_path: Path) -> None:
    ran = Session(tmp_path).run(blocks_of("```sh\ntrue\n```\n```sh\nfalse\n```\n```sh\ntrue\n```\n"), timeout=60)
    assert (ran.status, ran.last) == (1, "page.md:5")


def test_words_that_were_set_before_are_filled_in(tmp_path: Path) -> None:
    ran = Session(tmp_path).run(
        blocks_of("<!-- before: USER_ID=u7 -->\n```sh\necho /USER_ID/ MY_USER_ID\n```\n"), timeout=60
    )
    assert "/u7/ MY_USER_ID" in ran.output


def test_an_extra_that_is_not_there_is_noticed() -> None:
    assert problems(["install", "-c", str(ROOT / "constraints.txt"), ".[postgres,parquet]"]) == []
    assert problems(["install", ".[postgras]"]) == ["there is no extra postgras"]
    assert problems(["install", "-c", "nowhere.txt", "sqlalchemie"]) == [
        "there is no nowhere.txt",
        "sqlalchemie is not known here",
    ]


def blocks_of(text: str) -> list[Block]:
    return [block for block in blocks_in("page.md", text) if block.is_shell]


def files(folder: Path) -> None:
    """items.csv and events.csv, as a reader would have them."""
    items = ([item["item_id"], item["title"], item["categories"][0]] for item in worlds.items())
    table(folder / "items.csv", ["item_id", "title", "categories"], items)
    # A user a day: so each block of a backtest has users with events enough to be scored on.
    events = (
        [f"u{user:02d}", worlds.item_id(7 * user + place), str(FIRST_DAY + 86_400 * user + 60 * place)]
        for user in range(60)
        for place in range(12)
    )
    table(folder / "events.csv", ["user_id", "item_id", "timestamp"], events)


def table(path: Path, header: list[str], rows: Iterable[list[str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
