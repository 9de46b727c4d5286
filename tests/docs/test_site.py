"""The site: every page is in the navigation, links lead somewhere, pictures are right, nothing comes from elsewhere."""

import os
import re
import runpy
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import REQUIRE_SERVICES
from tests.docs.pages import DOCS, ROOT, pages

BUILD = ROOT / ".venv-docs" / "bin" / "sphinx-build"
PICTURES = sorted((DOCS / "images").glob("*.svg"))


def navigation() -> list[str]:
    configured = runpy.run_path(str(DOCS / "conf.py"))
    return ["index", *(configured["path_of"](name) for names in configured["PAGES"].values() for name in names)]


def test_every_page_is_in_the_navigation() -> None:
    names = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")]
    missing = [name for name in names if not any(fnmatch(name, wanted) for wanted in navigation())]
    assert missing == [], "name them in PAGES of docs/conf.py"


def test_links_between_pages_lead_somewhere() -> None:
    wrong = []
    for page in pages():
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            found = (page.parent / path).resolve() if path else page
            if not found.exists():
                wrong.append(f"{page.relative_to(ROOT)}: {target}")
            elif anchor and found.suffix == ".md" and anchor not in anchors(found):
                wrong.append(f"{page.relative_to(ROOT)}: {target}")
    assert wrong == []


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_whole_and_says_what_it_shows(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()  # noqa: S314  # our own file
    name = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{name}title") is not None
    assert root.find(f"{name}desc") is not None
    assert "href" not in picture.read_text()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for box in root.iter(f"{name}rect"):
        assert float(box.attrib["x"]) >= 0
        assert float(box.attrib["x"]) + float(box.attrib["width"]) <= width
        assert float(box.attrib["y"]) + float(box.attrib["height"]) <= height


def test_every_picture_is_shown_with_a_text_instead() -> None:
    shown = {
        found
        for page in pages()
        for found in re.findall(r"!\[([^\]]+)\]\((?:\S*/)?images/([\w-]+\.\w+)\)", page.read_text())
    }
    assert {name for _, name in shown} >= {path.name for path in PICTURES}
    assert all(len(alternative.split()) > 3 for alternative, _ in shown)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; .ci/run makes .venv-docs before the tests."""
    if not BUILD.exists():
        if REQUIRE_SERVICES:
            pytest.fail("there is no .venv-docs: make docs")
        pytest.skip("there is no .venv-docs: make docs")
    folder = tmp_path_factory.mktemp("site")
    line = [BUILD, "--builder", "html", "--fail-on-warning", "--keep-going", "--quiet", DOCS, folder]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(line, env=kept, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)[^>]*\ssrc=["'](?:https?:)?//|<link(?![^>]*rel=["']canonical)[^>]*href=["'](?:https?:)?//"""
    )
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text()), page.name
    for sheet in [*site.rglob("*.css")]:
        assert not re.search(r"@import|url\([\"']?(?:https?:)?//", sheet.read_text()), sheet.name


def test_every_page_can_be_reached_from_the_first(site: Path) -> None:
    first = (site / "index.html").read_text()
    for path in DOCS.rglob("*.md"):
        assert f'href="{path.relative_to(DOCS).with_suffix(".html").as_posix()}"' in first or path.stem == "index", path
