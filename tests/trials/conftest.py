from pathlib import Path

import pytest

from service.kit.db import Database
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock


@pytest.fixture
def shelf(tmp_path: Path, database: Database, clock: SetClock) -> Shelf:
    return Shelf(tmp_path, database, clock)
