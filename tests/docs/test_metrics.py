"""docs/metrics.md is current, names follow Prometheus, and nobody asks for a metric that is not there."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from service.telemetry import REGISTRY
from tests.docs.pages import DOCS, ROOT, blocks, is_record, pages
from trainer.telemetry import metrics_page

ROW = re.compile(r"^\| `([a-z_]+)` \| ([a-z]+) \| (.*?) \| [\w, ]+ \| (.+) \|$", re.MULTILINE)
BASE_UNITS = ("seconds", "bytes", "requests", "revision", "fds")
WRONG_UNITS = re.compile(r"_(ms|millis\w*|microseconds|minutes|hours|kb|mb|kilobytes|megabytes|percent)(_|$)")
FUNCTIONS = {"le", "by", "and", "on", "or", "unless", "sum", "max", "min", "rate", "time", "absent", "increase"}


def listed() -> dict[str, str]:
    """Name and type of every metric of the page."""
    return {name: kind for name, kind, _, _ in ROW.findall(metrics_page())}


def shown() -> set[str]:
    """Every name that a query may use."""
    parts = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + part for name, kind in listed().items() for part in parts.get(kind, ("",))} | {"up"}


def test_the_page_of_metrics_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer.telemetry"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (DOCS / "metrics.md").read_text() == done.stdout, "python -m trainer.telemetry > docs/metrics.md"


def test_the_page_has_every_metric() -> None:
    collected = {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in REGISTRY.collect()}
    assert collected <= set(listed())
    assert {"adaptide_http_request_seconds", "adaptide_windows_total"} <= collected


def test_names_follow_prometheus() -> None:
    for name, kind in listed().items():
        assert name.startswith("adaptide_"), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert not WRONG_UNITS.search(name), name
        if kind == "histogram":
            assert name.endswith(BASE_UNITS), name


def test_every_metric_says_what_it_is() -> None:
    for name, _, _, meaning in ROW.findall(metrics_page()):
        assert len(meaning.split()) >= 3, name
        assert meaning.endswith("."), name


def queries() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/adaptide.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "docker/prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize(("where", "query"), list(queries()), ids=lambda value: str(value)[:30])
def test_a_query_names_metrics_that_exist(where: str, query: str) -> None:
    selectors = set(re.findall(r"\b([a-z_:]+)(?=\{|\[)", query)) | set(re.findall(r"\badaptide_[a-z_]+", query))
    assert selectors - shown() == set(), where
    assert query.count("(") == query.count(")"), where
    assert query.count("{") == query.count("}"), where


@pytest.mark.parametrize(("where", "query"), list(queries()), ids=lambda value: str(value)[:30])
def test_a_query_names_labels_that_exist(where: str, query: str) -> None:
    labels = {name: set(re.findall(r"`(\w+)`", found)) for name, _, found, _ in ROW.findall(metrics_page())}
    for metric, matchers in re.findall(r"\b(adaptide_[a-z_]+)\{([^}]*)\}", query):
        known = next(labels[name] for name in labels if metric.startswith(name))
        assert set(re.findall(r"(\w+)\s*(?:=|!)", re.sub(r'"[^"]*"', "", matchers))) <= known | {"job", "instance"}, (
            where
        )


def test_the_pages_name_no_metric_that_is_not_there() -> None:
    wrong = []
    for page in pages():
        if is_record(page):
            continue
        text = page.read_text()
        for block in blocks(page):
            text = text.replace(block.text, "")
        for name in re.findall(r"`(adaptide_[a-z_]+)", text):
            if name not in shown() | set(listed()) and not name.endswith("_"):
                wrong.append(f"{page.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    page = (DOCS / "operate.md").read_text()
    explained = set(re.findall(r"^### (Adaptide\w+)$", page, re.MULTILINE))
    alerts = [rule["alert"] for rule in rules()]
    assert len(alerts) == len(set(alerts))
    assert set(alerts) == explained


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_links_its_runbook(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook_url"].endswith(f"docs/operate.md#{rule['alert'].lower()}")
    assert rule["annotations"]["summary"]
    assert rule["labels"]["severity"] in ("warning", "critical")
