"""Traces reach a real collector over OTLP, say nothing of users, and cost nothing where they are off or unwanted."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from service.adapters.artifacts import ArtifactStore
from service.app import create_app
from service.kit import migrate
from service.kit.db import Database
from service.settings import Settings
from service.telemetry import configure_logging
from service.tracing import OpenTelemetryTraces, tracing
from tests import worlds
from tests.conftest import SetClock
from tests.otlp import Collector, attributes, collecting
from trainer.updater import Updater

if TYPE_CHECKING:
    from tests.built import BuiltWorld

TRACE = "0af7651916cd43dd8448eb211c80319c"
ABOVE = "b7ad6b7169203331"
CHILDREN = {"history.read", "generate", "recommendation.record"}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield collector


@pytest.fixture
def traced(tmp_path: Path) -> Settings:
    """Settings over a migrated store of this test's own, with traces on."""
    settings = Settings(home=tmp_path, database_url=f"sqlite:///{tmp_path / 'adaptide.db'}", traces=True)
    database = Database(settings.database_url.get_secret_value())
    migrate.upgrade(database)
    database.close()
    return settings


def serving(settings: Settings, world: "BuiltWorld | None" = None) -> TestClient:
    """A client of the application, with a key that may do everything; it starts when it is entered."""
    app = create_app(settings)
    services = app.state.services
    if world is not None:
        world.copy_into(services.database, settings.artifacts_dir)
    key = services.access.create("tests", frozenset({"admin"}), actor="cli")
    return TestClient(app, headers={"Authorization": f"Bearer {key.token}"}, raise_server_exceptions=False)


def named(spans: list[Any], name: str) -> Any:
    (found,) = [span for span in spans if span.name == name]
    return found


def test_a_recommendation_is_one_trace_with_what_it_waited_for(
    collector: Collector, traced: Settings, built_world: "BuiltWorld", capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO", json=True)
    with serving(traced, built_world) as client:
        services = client.app.state.services  # type: ignore[attr-defined]
        worlds.eventually(lambda: services.serving().adapter_version is not None, 60)
        worlds.eventually(lambda: services.catalogue.index.base_id is not None, 60)
        headers = {"traceparent": f"00-{TRACE}-{ABOVE}-01", "X-Request-ID": "r-1"}
        reply = client.get("/v1/users/u07/recommendations", headers=headers)
        assert reply.json()["strategy"] == "personalised"
    spans = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    root = named(spans, "GET /v1/users/{user_id:path}/recommendations")
    assert root.parent_span_id.hex() == ABOVE
    assert attributes(root) == {
        "http.request.method": "GET",
        "http.route": "/v1/users/{user_id:path}/recommendations",
        "http.response.status_code": 200,
        "adaptide.request_id": "r-1",
    }
    below = [span for span in spans if span.parent_span_id == root.span_id]
    assert {span.name for span in below} == CHILDREN
    assert [attributes(span) for span in below] == [{}] * 3
    assert collector.services == {"adaptide-service"}
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (served,) = [line for line in lines if line.get("request_id") == "r-1"]
    assert served["trace_id"] == TRACE


def test_nothing_of_a_user_or_a_key_is_in_a_trace(collector: Collector, traced: Settings) -> None:
    with serving(traced) as client:
        client.get("/v1/users/somebody-secret/recommendations?limit=3")
        client.post("/v1/recommendations", json={"user_id": "somebody-secret", "limit": 0})
        client.get("/no/such/somebody-secret")
    said = b"".join(collector.bodies)
    assert {span.name for span in collector.spans} >= {
        "GET /v1/users/{user_id:path}/recommendations",
        "POST /v1/recommendations",
        "GET unmatched",
    }
    for secret in (b"secret", b"adp_", b"Bearer"):
        assert secret not in said


def test_probes_are_not_traced(collector: Collector, traced: Settings) -> None:
    with serving(traced) as client:
        client.get("/health/live")
        client.get("/metrics")
    assert collector.spans == []


def test_a_window_is_one_trace_with_a_span_for_each_step(
    collector: Collector, traced: Settings, clock: SetClock
) -> None:
    database = Database(traced.database_url.get_secret_value())
    worlds.put(database, clock, worlds.items())
    worlds.send(database, clock, worlds.first_walks())
    with tracing(traced, "trainer") as traces:
        updater = Updater(database, traced, clock, ArtifactStore(traced.artifacts_dir), traces=traces)
        (window,) = updater.close_and_work(None)
    database.close()
    root = named(collector.spans, "window")
    assert attributes(root) == {
        "adaptide.window_id": window.window_id,
        "adaptide.attempt": 1,
        "adaptide.state": "skipped",  # there is no base
    }
    steps = [span for span in collector.spans if span.parent_span_id == root.span_id]
    assert [span.name for span in steps] == ["catalogue", "examples"]
    assert {span.trace_id for span in steps} == {root.trace_id}
    assert collector.services == {"adaptide-trainer"}


def test_requests_go_on_without_a_collector(traced: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with serving(traced) as client:
        assert [client.get("/v1/users/u1/recommendations").status_code for _ in range(20)] == [200] * 20


def test_a_collector_that_hangs_is_not_waited_for(collector: Collector, traced: Settings) -> None:
    collector.hang.set()
    with serving(traced) as client:
        assert client.get("/v1/users/u1/recommendations").status_code == 200
    assert not collector.released.is_set()  # it has still not answered, and the service has stopped


def test_what_a_collector_does_not_take_is_bounded(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "32")
    collector.hang.set()
    traces = OpenTelemetryTraces("tests")
    traces.start()
    for number in range(1_000):
        with traces.span(f"span-{number}"):
            pass
    collector.hang.clear()
    collector.released.set()
    traces.stop()
    names = [span.name for span in collector.spans]
    assert len(names) <= 64 + 2 * 32
    assert "span-999" in names  # the newest are kept


def test_a_failure_is_named_by_its_kind_alone(collector: Collector) -> None:
    traces = OpenTelemetryTraces("tests")
    traces.start()
    with pytest.raises(ValueError, match="secret"), traces.span("failing"):
        raise ValueError("secret")
    traces.stop()
    (span,) = collector.spans
    assert attributes(span) == {"error.type": "ValueError"}
    assert list(span.events) == []
    assert span.status.message == ""


def test_a_reply_of_5xx_is_an_error_and_one_of_4xx_is_none(collector: Collector, traced: Settings) -> None:
    with serving(traced) as client:
        assert client.get("/v1/items/unknown").status_code == 404
        database = Database(traced.database_url.get_secret_value())
        with database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE items RENAME TO elsewhere")
        database.close()
        status = client.get("/v1/items/unknown").status_code
    assert status >= 500
    spans = {attributes(span)["http.response.status_code"]: span for span in collector.spans}
    assert attributes(spans[status])["error.type"] == str(status)
    assert (spans[404].status.code, spans[status].status.code) == (0, 2)  # unset, ERROR
    assert spans[status].status.message == ""


def python(code: str, tmp_path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-c", code]
    home = {"ADAPTIDE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin"}
    return subprocess.run(line, env=home | environment, capture_output=True, text=True, timeout=120, check=False)


CREATE = "from service.app import create_app; from service.settings import load_settings; create_app(load_settings())"


def test_off_means_that_nothing_is_imported(tmp_path: Path) -> None:
    ask = "import sys; print([n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    done = python(f"{CREATE}; {ask}", tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_frameworks_own_traces_stay_off(
    collector: Collector, traced: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    with serving(traced.model_copy(update={"traces": False})) as client:
        client.get("/v1/users/somebody/recommendations")
    assert collector.bodies == []


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    run = "import sys; sys.argv = ['adaptide', {}]; {}from trainer.cli import main; main()"
    python(run.format("'db', 'upgrade'", ""), tmp_path)
    without = run.format("'serve'", "sys.modules['opentelemetry.exporter'] = None; ")
    done = python(without, tmp_path, ADAPTIDE_TRACES="true", ADAPTIDE_PORT="0")
    assert done.returncode == 1
    assert "pip install -c constraints.txt '.[otel]'" in done.stderr
    assert "Traceback" not in done.stderr
