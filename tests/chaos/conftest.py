"""What a chaos test saw, kept for the report: `figures` in the test, a line of JSON in ADAPTIDE_TEST_FIGURES."""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from service.kit.db import Database
from tests.chaos.scenarios import FULL, SCENARIOS
from tests.cluster.nursery import Nursery
from tests.cluster.running import adapters, cluster, referee, running  # noqa: F401  # fixtures

if TYPE_CHECKING:
    from tests.built import BuiltWorld
    from tests.chaos.stand import Stand

FIGURES = pytest.StashKey[dict[str, Any]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if FULL and here in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(3600))  # the timeout of a small one is the whole suite's


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the test counted and measured, by name; empty at first."""
    return request.node.stash.setdefault(FIGURES, {})  # type: ignore[no-any-return]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    mark, where = item.get_closest_marker("scenario"), os.environ.get("ADAPTIDE_TEST_FIGURES")
    if where and mark and (report.when == "call" or (report.when == "setup" and not report.passed)):
        number = mark.args[0]
        assert number in SCENARIOS, number
        line = {
            "scenario": number,
            "test": item.name,
            "outcome": report.outcome,
            "seconds": round(report.duration, 1),
            "full": FULL,
            "figures": item.stash.get(FIGURES, {}),
        }
        with Path(where).open("a") as file:
            file.write(json.dumps(line) + "\n")
    return report


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where processes come from, each for the price of a fork; those that are left are killed with it."""
    made = Nursery(tmp_path_factory.mktemp("nursery") / "nursery.log")
    yield made
    made.close()


@pytest.fixture
def stand(nursery: Nursery, built_world: "BuiltWorld", database: Database, tmp_path: Path) -> Iterator["Stand"]:
    """A small world with a base, and how to serve it and learn on."""
    from tests.chaos.stand import Stand

    made = Stand(nursery, built_world, database, tmp_path, {})
    yield made
    made.close()
