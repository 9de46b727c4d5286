"""Nothing that goes wrong writes a user's id into a log."""

import json

import pytest
import sqlalchemy as sa
import structlog

from service.errors import StoreUnavailable
from service.events.service import ingest
from service.kit.db import Database
from service.telemetry import configure_logging
from tests.adapters.test_commands import _logging_is_put_back  # noqa: F401  # configures logging
from tests.conftest import SetClock
from tests.events.test_service import TOLERANCE, event
from tests.users.test_erasure import GONE


def test_a_statement_that_fails_is_logged_without_its_values(
    database: Database, clock: SetClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO", json=True)
    with database.write() as connection:
        connection.execute(sa.text("ALTER TABLE items RENAME TO items_elsewhere"))
    with pytest.raises((sa.exc.DBAPIError, StoreUnavailable)) as failed:
        ingest(database, [event("e", user=GONE, item=GONE)], clock=clock, clock_tolerance=TOLERANCE)
    structlog.get_logger("tests").error("failed", exc_info=failed.value)
    said = capsys.readouterr().err
    assert "items" in json.loads(said.splitlines()[-1])["exception"]
    assert GONE not in said
