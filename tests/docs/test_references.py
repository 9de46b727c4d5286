"""The pages that are written from code are current, and what pages name is there."""

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest

from service.http.reference import api_page, current_document
from service.settings import PREFIX, Settings
from tests.docs.pages import DOCS, ROOT, is_record, pages
from trainer.reference import commands, commands_page

WRITTEN = {
    "api.md": "service.http.reference",
    "commands.md": "trainer.reference",
    "settings.md": "service.settings",
}
OTHERS = {"ADAPTIDE_TAG", "ADAPTIDE_TEST_", "ADAPTIDE_URL", "ADAPTIDE_", "ADAPTIDE_KEY", "ADAPTIDE_SHOP_KEY"}
"""Names that are no settings: compose.yaml's, the tests', the examples'."""


@pytest.mark.parametrize(("page", "module"), WRITTEN.items())
def test_a_written_page_is_current(page: str, module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (DOCS / page).read_text() == done.stdout, f"python -m {module} > docs/{page}"


def test_the_api_page_has_every_operation_and_object() -> None:
    document = current_document()
    page = api_page(document)
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"\n### {method.upper()} {path}\n" in page
    for name in document["components"]["schemas"]:
        assert f"\n### {name}\n" in page


def test_every_link_of_the_api_page_has_its_heading() -> None:
    page = api_page(current_document())
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= headings


def test_the_page_of_commands_has_every_command_and_option() -> None:
    page = commands_page()
    for name, command in commands():
        assert f"\n## {name}\n" in page
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert parameter.opts[0] in page


def named_commands() -> Iterator[tuple[str, str]]:
    """Every `adaptide ..` in code of any page, with where: run or not."""
    for page in pages():
        text = page.read_text()
        code = re.findall(r"(?<!`)`(adaptide [^`]+)`(?!`)", text)
        code += re.findall(
            r"^(?:    |\$ )?(?:[A-Z_]+=\S+ )*(adaptide [a-z].*)$", text.replace("\\\n", " "), re.MULTILINE
        )
        for line in code:
            yield page.relative_to(ROOT).as_posix(), " ".join(line.split("#")[0].split())


def test_every_command_that_is_named_exists_with_its_options() -> None:
    known = {name: {o for p in command.params for o in p.opts} | {"--help"} for name, command in commands()}
    groups = {name.rsplit(" ", 1)[0] for name in known}
    wrong = []
    for where, line in named_commands():
        words = line.split()
        names = [" ".join(words[:length]) for length in (3, 2)]
        name = next((name for name in names if name in known), None)
        if name is None:
            # `adaptide keys create|list`, `adaptide COMMAND`: a group, or a word for any command
            if not any(found in groups for found in names) and not re.match(r"adaptide [A-Z]|adaptide commands?", line):
                wrong.append(f"{where}: {line}")
            continue
        for option in re.findall(r"(?<!\S)\[?(--[a-z-]+)", line.split(" && ")[0].split("; ")[0]):
            if option not in known[name]:
                wrong.append(f"{where}: {line}: {option}")
    assert wrong == []


def test_every_setting_that_is_named_exists() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | OTHERS
    wrong = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in pages()
        for name in set(re.findall(r"\bADAPTIDE_[A-Z_]*", page.read_text()))
        if name not in known and not name.startswith("ADAPTIDE_TEST_") and not name.endswith("_")
    ]
    assert wrong == []


def test_every_route_that_is_named_exists() -> None:
    known = {re.sub(r"\{[^}]*\}", "X", path) for path in current_document()["paths"]}
    wrong = []
    for page in pages():
        if is_record(page):
            continue
        for path in re.findall(r"(?:GET|POST|PUT|DELETE) (/v1/[\w/{}:.-]*)", page.read_text()):
            shown = re.sub(r"\{[^}]*\}", "X", path).rstrip("/.")
            if shown not in known:
                wrong.append(f"{page.relative_to(ROOT)}: {path}")
    assert wrong == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {found for page in pages() for found in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert named - targets == set()


def test_headings_do_not_skip_a_level() -> None:
    for page in pages():
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        levels = [len(found) for found in re.findall(r"^(#+) ", text, re.MULTILINE)]
        assert levels[0] == 1, page
        assert all(after <= before + 1 for before, after in pairwise(levels)) or is_record(page), page
