"""A key by its id."""

import pytest

from service.access.service import AccessService
from service.errors import NotFound
from service.kit.db import Database
from tests.conftest import SetClock


def test_a_key_that_is_not_there_is_not_found(database: Database, clock: SetClock) -> None:
    with pytest.raises(NotFound):
        AccessService(database, clock).find("000000000000")
