"""Scenario 21: secrets are planted, used rightly and wrongly, and looked for everywhere; a revoked key is refused."""

import base64
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from service.access.schemas import Scope
from service.access.service import AccessService
from service.kit.clock import utc_now
from service.kit.db import Database
from tests import worlds
from tests.chaos.scenarios import sized
from tests.conftest import PostgresStore
from tests.proxies import PausableProxy, pausable
from tests.serving import command, serving
from tests.shared.conftest import own_redis  # noqa: F401  # a fixture
from tests.shared.servers import OwnRedis

pytestmark = [pytest.mark.postgres, pytest.mark.e2e, pytest.mark.scenario(21)]

REDIS_PASSWORD = "planted-redis-hunter2"
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def store(_postgres: PostgresStore) -> Iterator[URL]:
    """A store whose URL carries a password; where the server trusts everybody, one that was planted."""
    url = make_url(_postgres.url)
    yield url if url.password else url.set(password="planted-database-hunter2")
    _postgres.reset()


@pytest.fixture
def access(_postgres: PostgresStore) -> Iterator[AccessService]:
    """Keys, as another process than the one that serves."""
    database = Database(_postgres.url)
    yield AccessService(database, utc_now)
    database.close()


def written(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def dump(url: str) -> str:
    """Every row of every table, partitions included, as text."""
    database = Database(url)
    with database.read() as connection:
        names = sa.inspect(connection).get_table_names()
        rows = [str(connection.execute(sa.text(f'SELECT * FROM "{name}"')).all()) for name in names]  # noqa: S608
    database.close()
    return "\n".join(rows)


def misuse(client: httpx.Client, secret: str) -> Iterator[httpx.Response]:
    """A secret in every place that it has no business in, wrong values around it included."""
    coded = base64.b64encode(f"user:{secret}".encode()).decode()
    headers: list[dict[str, str]] = [
        {"Authorization": secret},
        {"Authorization": f"Basic {coded}"},
        {"Authorization": f"Bearer {secret}x"},
        {"Authorization": f"Bearer {secret} {secret}"},
        {"Authorization": f"Bearer {secret[:-1]}"},
        {"X-Api-Key": secret},
        {"X-Request-ID": secret},
        {"Cookie": f"adaptide={secret}; key={secret}"},
        {"Referer": f"http://a/?key={secret}"},
        {"User-Agent": secret},
        {secret: "x"},
    ]
    for given in headers:
        yield client.get("/v1/admin/adapters", headers=given)
        yield client.get("/dashboard", headers=given)
    for path in (
        f"/v1/admin/adapters?access_token={secret}",
        f"/v1/admin/audit?before={secret}",
        f"/v1/admin/adapters/{secret}",
        f"/v1/items/{secret}",
        f"/{secret}",
        f"/dashboard?key={secret}",
        f"/dashboard/{secret}",
        f"/health/live?key={secret}",
    ):
        yield client.get(path)
    for body in ({"key": secret}, secret, {"events": [{secret: 1}]}, {"events": [{"event_id": {"a": secret}}]}):
        yield client.post("/v1/events", json=body)
        yield client.put("/v1/items", json=body)
        yield client.post("/v1/recommendations", json=body)
    yield client.post("/dashboard/login", data={"key": secret + "x"}, headers=OWN)
    yield client.post("/dashboard/login", data={"key": secret}, headers={"Origin": "https://elsewhere.example"})
    yield client.post("/dashboard/promote", data={"csrf": secret, "version": secret}, headers=OWN)


def misuse_as_admin(client: httpx.Client, admin: dict[str, str], secret: str) -> Iterator[httpx.Response]:
    """By somebody who is let in."""
    for path in ("/v1/admin/adapters/rollback", "/v1/admin/adapters/a000001-000000000000/promote"):
        yield client.post(path, headers=admin, json={"reason": f"my key is {secret}"})
        yield client.post(path, headers=admin | {"Idempotency-Key": secret})
        yield client.post(path, headers=admin | {"If-Match": secret})
        yield client.post(path, headers=admin | {"X-Request-ID": secret})
    yield client.post(f"/v1/admin/adapters/{secret}/promote", headers=admin)
    yield client.get(f"/v1/items/{secret}", headers=admin)
    yield client.get(f"/v1/users/{secret}/events", headers=admin)


@pytest.mark.timeout(sized(300, 1200))
def test_no_secret_is_found_anywhere_however_it_was_used(
    store: URL,
    access: AccessService,
    own_redis: OwnRedis,  # noqa: F811
    tmp_path: Path,
    figures: dict[str, Any],
) -> None:
    own_redis.kill()
    own_redis.start("--requirepass", REDIS_PASSWORD)
    redis_url = own_redis.url.replace("://", f"://:{REDIS_PASSWORD}@")
    tokens = [access.create(scope, frozenset({scope}), actor="cli").token for scope in Scope]
    admin = {"Authorization": f"Bearer {tokens[-1]}"}
    log, replies, arguments, sessions = tmp_path / "serve.log", [], [], []
    with serving(
        written(store), tmp_path, log, REDIS_URL=redis_url, LOG_LEVEL="DEBUG", FAILURE_LIMIT="0", THREADS="1"
    ) as (process, address):
        with httpx.Client(base_url=address, timeout=60) as client:
            for token in tokens[::2]:
                opened = client.post("/dashboard/login", data={"key": token}, headers=OWN)
                sessions.append(opened.cookies["adaptide"])
                replies.append(client.get("/dashboard").text)
            event = worlds.event("e", "u", "i", worlds.START)
            assert client.post("/v1/events", json={"events": [event]}, headers=admin).status_code == 202
            for secret in [*tokens, *sessions]:
                client.cookies.clear()
                for used in (misuse(client, secret), misuse_as_admin(client, admin, secret)):
                    replies += [f"{reply.headers} {reply.text}" for reply in used]
            own_redis.kill()
            replies.append(client.get("/health/ready").text)
            replies.append(client.get("/v1/admin/audit?limit=500", headers=admin).text)
            metrics = client.get("/metrics").text
        for one in [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]:
            with suppress(psutil.NoSuchProcess):
                arguments += psutil.Process(one).cmdline()
    said = list(outputs(store, redis_url, tmp_path, tokens[0].split("_")[1]))

    passwords = [str(store.password), REDIS_PASSWORD]
    secrets = [*tokens, *sessions, *passwords]
    halves = [token.split("_", 2)[2] for token in tokens] + [session.split("_", 1)[1] for session in sessions]
    places = {
        "database": dump(written(store)),
        "logs": log.read_text(errors="replace"),
        "metrics": metrics,
        "replies": "\n".join(replies),
        "commands": "\n".join(said),
        "arguments": "\n".join(arguments),
    }
    found = {name: [secret for secret in (*secrets, *halves) if secret in text] for name, text in places.items()}
    figures |= {"secrets": len(secrets), "misuses": len(replies)}
    figures |= {f"{name}_bytes": len(text) for name, text in places.items()}
    assert "request_served" in places["logs"]
    assert len(replies) > 200
    assert found == {name: [] for name in places}


def outputs(store: URL, redis_url: str, home: Path, key_id: str) -> Iterator[str]:
    """What commands say, with good and with wrong settings."""
    nowhere = written(store.set(host="127.0.0.1", port=1))
    wrong = written(store.set(drivername="mysql"))
    torn = written(store).replace("@", "/@", 1)
    unknown = written(store.set(database="no-such-database"))
    runs: list[tuple[list[str], str, dict[str, str]]] = [
        (["keys", "list", "--json"], written(store), {}),
        (["keys", "list"], written(store), {}),
        (["keys", "revoke", key_id], written(store), {}),
        (["db", "check"], nowhere, {"LOG_LEVEL": "DEBUG"}),
        (["db", "check"], wrong, {}),
        (["db", "check"], torn, {}),
        (["db", "check"], unknown, {}),
        (["db", "check"], written(store), {"BEAMS": "none"}),
        (["serve"], written(store), {"REDIS_URL": redis_url.replace("redis://", "amqp://")}),
        (["serve"], written(store), {"REDIS_URL": redis_url.replace(":6379", ":x").replace("@", "#@")}),
        (["serve"], written(store), {"ENVIRONMENT": "production", "REDIS_URL": redis_url}),
    ]
    started = []
    for arguments, url, settings in runs:
        line, environment = command(url, home, *arguments, **settings)
        started.append(
            subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for process in started:
        said, _ = process.communicate(timeout=240)
        assert said, process.args
        yield said


# --- a revoked key ---


@pytest.fixture
def proxy(store: URL) -> Iterator[PausableProxy]:
    with pausable(store.host or "127.0.0.1", store.port or 5432) as proxy:
        yield proxy
        proxy.go_on()


@pytest.mark.timeout(sized(300, 1200))
def test_a_revoked_key_is_refused_within_five_seconds_and_stays_so_while_the_store_is_away(
    store: URL, access: AccessService, proxy: PausableProxy, tmp_path: Path, figures: dict[str, Any]
) -> None:
    revoked, kept = (access.create(name, frozenset({Scope.ADMIN}), actor="cli") for name in ("revoked", "kept"))
    past, good = ({"Authorization": f"Bearer {key.token}"} for key in (revoked, kept))
    through = store.set(host="127.0.0.1", port=proxy.port)
    good_s = sized(20, 300)  # 5 minutes are the default
    settings = {"THREADS": "1", "LOG_LEVEL": "WARNING", "FAILURE_LIMIT": "0", "KEYS_WITHOUT_STORE": f"PT{good_s}S"}
    with (
        serving(written(through), tmp_path, tmp_path / "serve.log", **settings) as (_, address),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        ask = {"limit": 1}
        opened = client.post("/dashboard/login", data={"key": revoked.token}, headers=OWN)
        session = {"Cookie": f"adaptide={opened.cookies['adaptide']}"}
        client.cookies.clear()
        for headers in (past, good):
            assert client.post("/v1/recommendations", json=ask, headers=headers).status_code == 200
        assert client.get("/dashboard", headers=session).status_code == 200
        access.revoke(revoked.key.key_id, actor="cli")
        started = time.monotonic()
        assert client.get("/dashboard", headers=session).status_code == 303  # a session asks the store each time
        while client.post("/v1/recommendations", json=ask, headers=past).status_code == 200:
            time.sleep(0.05)
        figures["refused_after_s"] = round(time.monotonic() - started, 2)
        assert client.post("/v1/recommendations", json=ask, headers=past).status_code == 401

        assert client.post("/v1/recommendations", json=ask, headers=good).status_code == 200
        proxy.pause()
        statuses = [client.post("/v1/recommendations", json=ask, headers=past).status_code for _ in range(5)]
        assert set(statuses) <= {401, 503}
        assert client.get("/dashboard", headers=session).status_code == 503
        time.sleep(4.5)  # longer than a key is taken for good without a look
        assert client.post("/v1/recommendations", json=ask, headers=good).status_code == 200  # P6
        assert client.get("/v1/admin/adapters", headers=good).status_code == 503
        assert client.post("/v1/events", json={"events": []}, headers=good).status_code == 503
        time.sleep(good_s)
        assert client.post("/v1/recommendations", json=ask, headers=good).status_code == 503

        proxy.go_on()
        worlds.eventually(lambda: client.get("/v1/admin/adapters", headers=good).status_code == 200, 30)
        assert client.post("/v1/recommendations", json=ask, headers=past).status_code == 401
    assert figures["refused_after_s"] <= 5
