"""The whole application over s3://: adapters are swapped through the bucket, and an outage of it stops no reply."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.adapters.activation import Activation
from service.adapters.place import PlaceWatch
from service.app import create_app
from service.kit.db import Database
from service.settings import Settings
from tests.built import BuiltWorld
from tests.conftest import SetClock
from tests.recommend.shop import Shop, ladder
from tests.s3 import Answer, S3Server, between, serving, use

PATH = "/v1/admin/adapters"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with serving(tmp_path / "s3") as server:
        use(monkeypatch, server.url)
        yield server


@pytest.fixture
def shop(server: S3Server, database: Database, settings: Settings, built_world: BuiltWorld) -> Iterator[Shop]:
    built = built_world.copy_into(database, server.bucket("shop") / "live")
    url = {"artifacts_url": "s3://shop/live", "artifacts_timeout": timedelta(seconds=2)}
    app = create_app(settings.model_copy(update=url), clock=SetClock())
    with TestClient(app, raise_server_exceptions=False) as client:
        key = app.state.services.access.create("tests", frozenset({Scope.ADMIN}), actor="cli")
        client.headers["Authorization"] = f"Bearer {key.token}"
        yield Shop(app, client, built)


def background(shop: Shop, kind: type) -> object:
    return next(part for part in shop.services.background if isinstance(part, kind))


def wait_for(shop: Shop, version: str) -> None:
    deadline = time.monotonic() + 60
    while shop.served() != version:
        assert time.monotonic() < deadline, f"{shop.served()} serves, not {version}"
        time.sleep(0.02)


def artifacts_part(shop: Shop) -> dict[str, object]:
    watch = background(shop, PlaceWatch)
    assert isinstance(watch, PlaceWatch)
    watch.ask()
    time.sleep(0.6)  # an answer of the probe is kept for half a second
    reply = shop.client.get("/health/ready")
    assert reply.status_code == 200, reply.text
    found: dict[str, object] = reply.json()["parts"]["artifacts"]
    return found


@pytest.mark.e2e
def test_adapters_are_swapped_through_the_bucket_and_an_outage_stops_no_reply(shop: Shop, server: S3Server) -> None:
    first = shop.built.adapter_version
    wait_for(shop, first)
    assert artifacts_part(shop) == {"ready": True, "state": "ok", "detail": None}

    second, third = shop.adapter(1), shop.adapter(2)
    assert shop.client.post(f"{PATH}/{second}/promote").status_code == 200
    wait_for(shop, second)
    reply = shop.ask(history=["i00", "i01"])
    expected = shop.referee(second, ["i00", "i01"])
    assert reply["items"][0]["score"] == pytest.approx(expected[reply["items"][0]["item_id"]], abs=1e-4)

    server.kill()
    assert ladder(shop.ask(history=["i00"])) == ("personalised", None) or shop.served() == second
    part = artifacts_part(shop)
    assert part["state"] == "unreachable, degraded"
    assert "bucket shop" in str(part["detail"])
    refused = shop.client.post(f"{PATH}/{third}/promote")
    assert refused.status_code == 409
    assert "bucket shop" in refused.json()["detail"]
    assert shop.client.get(f"{PATH}/{third}").json()["state"] == "passed", "out of reach is not corrupt"
    assert shop.client.post(f"{PATH}/rollback").json()["to_version"] == first, "what is cached can be gone back to"
    wait_for(shop, first)

    server.start()
    assert artifacts_part(shop)["state"] == "ok"
    assert shop.client.post(f"{PATH}/{third}/promote").status_code == 200
    wait_for(shop, third)

    fourth = shop.adapter(3)
    remote = shop.artifacts.remote
    assert remote is not None
    name = f"adapters/{fourth}/adapter_model.safetensors"
    weights = remote.objects.read(name, 10**9)
    remote.objects.put(name, weights[:-1] + bytes([weights[-1] ^ 1]))
    assert shop.client.post(f"{PATH}/{fourth}/promote").status_code == 409
    assert shop.client.get(f"{PATH}/{fourth}").json()["state"] == "corrupt"
    activation = background(shop, Activation)
    assert isinstance(activation, Activation)
    assert (shop.served(), activation.status().degraded) == (third, None)


@pytest.mark.e2e
def test_a_bucket_that_is_away_at_the_start_leaves_popularity(
    server: S3Server, database: Database, settings: Settings, built_world: BuiltWorld
) -> None:
    built_world.copy_into(database, server.bucket("shop") / "live")
    server.kill()
    url = {"artifacts_url": "s3://shop/live", "artifacts_timeout": timedelta(seconds=1)}
    app = create_app(settings.model_copy(update=url), clock=SetClock())
    with TestClient(app, raise_server_exceptions=False) as client:
        key = app.state.services.access.create("tests", frozenset({Scope.READ}), actor="cli")
        client.headers["Authorization"] = f"Bearer {key.token}"
        reply = client.post("/v1/recommendations", json={"history": ["i00"]})
        assert (reply.status_code, reply.json()["strategy"]) == (200, "popular")
        deadline = time.monotonic() + 60
        while "bucket shop" not in (told := client.get("/health/ready").text):
            assert time.monotonic() < deadline, told
            time.sleep(0.1)


@pytest.mark.e2e
def test_a_bucket_that_hangs_delays_neither_replies_nor_a_swap_to_what_is_cached(
    server: S3Server, database: Database, settings: Settings, built_world: BuiltWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, asked, over = threading.Event(), threading.Event(), threading.Event()

    def meddle(method: str, path: str, body: bytes) -> Answer:
        if hangs.is_set():
            asked.set()
            over.wait(120)
            return 500, b"", {}
        return None

    built = built_world.copy_into(database, server.bucket("shop") / "live")
    with between(server, meddle) as proxy:
        use(monkeypatch, proxy)
        url = {"artifacts_url": "s3://shop/live", "artifacts_timeout": timedelta(seconds=2)}
        app = create_app(settings.model_copy(update=url), clock=SetClock())
        with TestClient(app, raise_server_exceptions=False) as client:
            key = app.state.services.access.create("tests", frozenset({Scope.ADMIN}), actor="cli")
            client.headers["Authorization"] = f"Bearer {key.token}"
            shop = Shop(app, client, built)
            wait_for(shop, first := built.adapter_version)
            second, third = shop.adapter(1), shop.adapter(2)
            shop.point_at(second)
            wait_for(shop, second)
            hangs.set()
            shop.point_at(third)
            assert asked.wait(60), "it tries to fetch what it does not have"
            assert shop.served() == second, "a reply does not wait for the bucket"
            shop.point_at(first)
            wait_for(shop, first)
            activation = background(shop, Activation)
            assert isinstance(activation, Activation)
            assert activation.status().degraded is None
            over.set()
