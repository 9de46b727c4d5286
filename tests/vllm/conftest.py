"""vLLM is no dependency of the other tests: `make test-vllm` runs these in an environment that has it.

Without the package they are skipped, or fail with ADAPTIDE_TEST_REQUIRE_VLLM=1.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

REQUIRE_VLLM = os.environ.get("ADAPTIDE_TEST_REQUIRE_VLLM") == "1"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.filterwarnings("default"))  # vLLM and what it imports warn of their own affairs
        item.add_marker(pytest.mark.timeout(600))  # importing vLLM alone takes a minute on a busy machine
        if find_spec("vllm") is None and not REQUIRE_VLLM:
            item.add_marker(pytest.mark.skip(reason="vllm is not installed here: make test-vllm"))
