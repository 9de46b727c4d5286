"""What the log looks like, and what never gets into it."""

import json
import logging

import pytest
import structlog

from service.errors import ConfigurationError
from service.telemetry import configure_logging


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_our_lines_and_the_librarys_are_json_objects(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", json=True)
    structlog.get_logger("ours").info("window_sealed", window=3)
    logging.getLogger("theirs").warning("watch %s", "out")
    ours, theirs = lines(capsys)
    assert (ours["event"], ours["window"], ours["level"], ours["logger"]) == ("window_sealed", 3, "info", "ours")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("watch out", "warning", "theirs")
    assert str(ours["timestamp"]).endswith("Z")


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING", json=True)
    structlog.get_logger("ours").info("noise")
    assert lines(capsys) == []


def test_what_json_cannot_carry_is_still_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", json=True)
    structlog.get_logger("ours").info("odd", lone="\ud800", huge=2**70, thing=object())
    assert lines(capsys)[0]["event"] in ("odd", "'odd'")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    configure_logging("INFO", json=as_json)
    token = "".join(["adp_", "secret"])
    try:
        raise RuntimeError("went wrong")
    except RuntimeError as error:
        structlog.get_logger("ours").error("request_crashed", exc_info=error)
    logged = capsys.readouterr().err
    assert "went wrong" in logged
    assert "Traceback" in logged
    assert token not in logged


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="DEBUG, INFO, WARNING or ERROR"):
        configure_logging("LOUD")
