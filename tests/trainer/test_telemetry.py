"""What an updater shows of itself."""

import socket

import httpx
import pytest

from service.errors import ConfigurationError
from trainer import telemetry
from trainer.demo_processes import free_port


def test_an_updater_shows_its_metrics_while_it_runs() -> None:
    port = free_port(0)
    with telemetry.shown("127.0.0.1", port):
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'adaptide_windows_total{verdict="failed"} ' in text
        assert "adaptide_updater_working 0.0" in text
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_without_a_port_nothing_listens() -> None:
    with telemetry.shown("no address at all", 0):
        pass


def test_a_port_that_is_taken_is_said_in_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match="ADAPTIDE_TRAINER_PORT"), telemetry.shown("127.0.0.1", port):
            pass
