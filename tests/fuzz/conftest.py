"""`make fuzz` gives each property more examples than a test's five minutes allow."""

from pathlib import Path

import pytest

from tests.fuzz.inputs import EXAMPLES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if EXAMPLES and here in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(7200))
