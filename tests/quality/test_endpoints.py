"""GET /v1/admin/quality: what was counted, what waits, and how the serving version compares."""

from datetime import timedelta
from pathlib import Path

import orjson
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from service.settings import Settings
from tests.quality.shown import NOON, Shop, minutes
from trainer.cli import app as commands


@pytest.fixture
def counted(shop: Shop) -> Shop:
    """Four recommendations of an adapter, two of them hits at ranks 1 and 3, and one that waits."""
    for number in range(4):
        shop.show(f"u{number}", ["a", "b", "c"], model="a-1")
    shop.take("u0", "a", NOON + minutes(1))
    shop.take("u1", "c", NOON + minutes(1))
    shop.show(None, ["p"], NOON + minutes(1))
    shop.show("u0", ["a"], NOON + minutes(30), model="a-2")
    shop.fold(NOON + minutes(31))
    return shop


def test_it_shows_each_model(counted: Shop, admin: TestClient) -> None:
    reply = admin.get("/v1/admin/quality")
    assert reply.status_code == 200
    body = reply.json()
    assert body["horizon_seconds"] == 600
    assert body["counted_through"] == "2026-03-01T12:10:00Z"
    models = {model["model"]: model for model in body["models"]}
    assert list(models) == ["a-2", "popular", "a-1"]
    assert models["a-2"] | {"immature": 1, "shown": 0, "hit_rate": None} == models["a-2"]
    first = models["a-1"]
    assert (first["shown"], first["hits"], first["hit_rate"], first["gain"]) == (4, 2, 0.5, 0.375)
    assert (first["users"], first["distinct_items"], first["coverage"], first["novelty"]) == (4, 3, None, None)
    assert 0.1 < first["hit_rate_low"] < 0.5 < first["hit_rate_high"] < 0.9
    assert body["watch"]["why"] == "no base is active"


def test_it_can_be_asked_of_a_time(counted: Shop, admin: TestClient) -> None:
    body = admin.get("/v1/admin/quality", params={"since": "2026-03-01T12:05:00Z"}).json()
    assert [model["model"] for model in body["models"]] == ["a-2"]
    body = admin.get("/v1/admin/quality", params={"until": "2026-03-01T13:10:00+01:00"}).json()
    assert [model["model"] for model in body["models"]] == ["popular", "a-1"]


@pytest.mark.parametrize("since", ["2026-03-01T12:00:00", "yesterday", "6", "1772366400"])
def test_a_time_that_is_none_is_refused(admin: TestClient, since: str) -> None:
    reply = admin.get("/v1/admin/quality", params={"since": since})
    assert reply.status_code == 422
    assert reply.json()["errors"]


@pytest.mark.parametrize(
    ("since", "until", "shown"),
    [
        ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", 3),
        ("9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59Z", 0),
        ("2026-03-02T00:00:00Z", "2026-03-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00Z", "1969-12-31T00:00:00Z", 0),
    ],
)
def test_any_time_can_be_asked_for(counted: Shop, admin: TestClient, since: str, until: str, shown: int) -> None:
    reply = admin.get("/v1/admin/quality", params={"since": since, "until": until})
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["models"]) == shown


def test_only_admins_may_ask(client: TestClient) -> None:
    assert client.get("/v1/admin/quality").status_code == 401


def test_the_command_says_the_same(
    counted: Shop, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTIDE_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("ADAPTIDE_HOME", str(tmp_path))
    monkeypatch.setenv("ADAPTIDE_QUALITY_HORIZON", "600")
    found = CliRunner().invoke(commands, ["quality", "--json"])
    assert found.exit_code == 0, found.output
    models = {model["model"]: model for model in orjson.loads(found.stdout)["models"]}
    assert (models["a-1"]["hit_rate"], models["a-2"]["immature"]) == (0.5, 1)
    shown = CliRunner().invoke(commands, ["quality", "--last", "9999d"])
    assert shown.exit_code == 0, shown.output
    assert "0.5000" in shown.stdout
    assert "counted through 2026-03-01 12:10 UTC" in shown.stdout


def test_without_a_horizon_it_says_so(admin: TestClient, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.quality import monitor, service
    from service.quality.schemas import QualityView

    settings = shop.settings.model_copy(update={"quality_horizon": None})
    view = QualityView.of(service.read_quality(shop.database, settings), monitor.look(shop.database, settings), False)
    assert (view.horizon_seconds, view.models) == (None, [])


def test_immature_ones_are_counted_up_to_a_bound(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.quality import service

    monkeypatch.setattr(service, "IMMATURE_AT_MOST", 3)
    for number in range(5):
        shop.show(f"u{number}", ["a"], NOON + timedelta(seconds=number), model="a-1")
    found = service.read_quality(shop.database, shop.settings)
    assert (found.immature_capped, [one.immature for one in found.models]) == (True, [3])
