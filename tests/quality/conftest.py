"""A shop whose recommendations are counted within ten minutes."""

from pathlib import Path

import pytest

from service.kit.db import Database
from service.settings import Settings
from tests.conftest import SetClock
from tests.quality.shown import Shop, counting


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return counting(database_url, tmp_path / "home")


@pytest.fixture
def shop(database: Database, clock: SetClock, settings: Settings) -> Shop:
    return Shop(database, clock, settings)
