"""The documentation site: `make docs` builds it with warnings as errors (decision 38)."""

from pathlib import Path
from typing import Any

PAGES = {
    "Start": ["quickstart", "concepts", "decoding", "methods", "gorse", "batch"],
    "Use": [
        "Bring your own data <data>",
        "client",
        "recommendations",
        "quality",
        "trials",
        "time-travel",
        "Bring your own model <backbones>",
        "vllm",
    ],
    "Run": [
        "operate",
        "Deploy <deploy>",
        "dashboard",
        "dashboard-pages",
        "doctor",
        "Keys and access <access>",
        "Privacy <privacy>",
        "Overload <overload>",
        "Capacity <scale>",
        "Distributed training <distributed>",
        "PostgreSQL <postgresql>",
        "redis",
        "Artifacts <artifacts>",
    ],
    "Look up": ["api", "commands", "settings", "metrics"],
    "Results": [
        "Overview <results/README>",
        "Amazon Beauty, 8-core <results/amazon-beauty-small>",
        "Amazon Beauty, 5-core <results/amazon-beauty-2014>",
        "CDs and Vinyl <results/peso-official-cds>",
        "MovieLens-100k <results/movielens-100k>",
        "results/*",
    ],
    "Decisions": ["decisions/*"],
}
"""The navigation: names of pages, or `Title <name>` where the page's own title is long. A name that no page has yet is
passed over; a page that is not here fails the build."""

project = "Adaptide"
author = "The Adaptide authors"
html_title = "Adaptide"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

extensions = ["myst_parser"]
myst_heading_anchors = 4
highlight_language = "none"
exclude_patterns = ["_build"]

# Furo uses the reader's own fonts and loads nothing from elsewhere; tests/docs/test_site.py holds that.
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["adaptide.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6b75", "color-brand-content": "#0b6b75"},
    "dark_css_variables": {"color-brand-primary": "#5cc9d3", "color-brand-content": "#5cc9d3"},
}


def path_of(name: str) -> str:
    """`deploy` of `Deploy <deploy>`."""
    return name.rpartition("<")[2].rstrip(">")


def navigation(_app: Any, page: str, text: list[str]) -> None:
    """The first page's tables of contents."""
    if page != "index":
        return
    here = Path(__file__).parent
    for caption, names in PAGES.items():
        found = [name for name in names if "*" in name or (here / f"{path_of(name)}.md").exists()]
        text[0] += "\n".join(["\n```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *found, "```\n"])


def setup(app: Any) -> None:
    app.connect("source-read", navigation)
