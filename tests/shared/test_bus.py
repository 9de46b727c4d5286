"""One move of the pointer reaches every replica: at once by Redis, by polling without it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner

from service.adapters.bus import Bus, Change
from service.adapters.commands import app as adapters_app
from service.kit.db import Database
from service.kit.redis_link import RedisLink
from service.settings import Settings
from service.shared import announcements
from tests import worlds
from tests.adapters.test_commands import _logging_is_put_back  # noqa: F401  # a command configures logging
from tests.built import BuiltWorld
from tests.conftest import SetClock
from tests.recommend.shop import Shop
from tests.shared.conftest import PATIENCE
from tests.shared.servers import OwnRedis, Replica, replicas, soon
from tests.trainer.test_updater import make_settings
from tests.worlds import eventually
from trainer.base import BuiltBase
from trainer.updater import Updater

SQLITE_ONLY = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
WITH_REDIS, WITHOUT = 2.0, 10.0  # RELIABILITY.md, P5


@pytest.fixture
def settings(database_url: str, tmp_path: Path, redis_url: str, prefix: str) -> Settings:
    """Replicas that poll once in a minute."""
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        log_level="WARNING",
        poll_interval=timedelta(seconds=60),
        redis_url=redis_url,
        redis_prefix=prefix,
        redis_timeout=PATIENCE,
        threads=1,
    )


@pytest.fixture
def built(built_world: BuiltWorld, settings: Settings, database: Database) -> BuiltBase:
    return built_world.copy_into(database, settings.artifacts_dir)


@contextmanager
def listening(settings: Settings, clock: SetClock, count: int = 2) -> Iterator[list[Replica]]:
    """Replicas that hear one another."""
    with replicas(settings, clock, count) as made, Redis.from_url(settings.redis_url.get_secret_value()) as client:
        channel = f"{settings.redis_prefix}:changes"
        soon(lambda: client.pubsub_numsub(channel)[0][1] == count)
        yield made


def all_serve(made: list[Replica], version: str | None) -> Callable[[], bool]:
    return lambda: {replica.served for replica in made} == {version}


def promote(replica: Replica, version: str) -> None:
    reply = replica.client.post(f"/v1/admin/adapters/{version}/promote", headers={"If-Match": "*"})
    assert reply.status_code == 200, reply.text


def test_a_promotion_a_rollback_and_a_new_item_reach_the_other_replica_at_once(
    settings: Settings, clock: SetClock, built: BuiltBase
) -> None:
    with listening(settings, clock) as made:
        one, two = made
        first = built.adapter_version
        soon(all_serve(made, first))
        second = Shop(one.app, one.client, built).adapter(seed=1)
        promote(one, second)
        eventually(all_serve(made, second), WITH_REDIS)
        reply = two.client.post("/v1/admin/adapters/rollback", headers={"If-Match": "*"})
        assert reply.json()["to_version"] == first, reply.text
        eventually(all_serve(made, first), WITH_REDIS)

        new = {"items": [{"item_id": "new", "title": "amber radio"}]}
        assert one.client.put("/v1/items", json=new).status_code == 200
        eventually(lambda: "new" in two.services.catalogue.index.row_of, WITH_REDIS)
        assert two.client.delete("/v1/items/new").status_code == 204
        row = one.services.catalogue.index.row_of["new"]
        eventually(lambda: not one.services.catalogue.index.available[row], WITH_REDIS)


@SQLITE_ONLY
def test_a_trial_starts_and_ends_on_the_other_replica_at_once(
    settings: Settings, clock: SetClock, built: BuiltBase
) -> None:
    with listening(settings, clock) as made:
        one, two = made
        soon(all_serve(made, built.adapter_version))
        version = Shop(one.app, one.client, built).adapter(seed=1)
        wanted = {"adapter_version": version, "kind": "canary", "share": 0.5}
        assert one.client.put("/v1/admin/trial", json=wanted).status_code == 200
        eventually(lambda: two.services.trial.status().loaded == version, WITH_REDIS)
        assert two.client.delete("/v1/admin/trial").status_code == 200
        eventually(lambda: one.services.trial.status().loaded is None, WITH_REDIS)


@SQLITE_ONLY
def test_a_command_and_an_updater_are_heard_too(
    settings: Settings, clock: SetClock, built: BuiltBase, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "DATABASE_URL": database_url,
        "ARTIFACTS_URL": str(settings.artifacts_dir),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "REDIS_PREFIX": settings.redis_prefix,
    }.items():
        monkeypatch.setenv(f"ADAPTIDE_{name}", value)
    with listening(settings, clock) as made:
        shop = Shop(made[0].app, made[0].client, built)
        second = shop.adapter(seed=1)
        done = CliRunner().invoke(adapters_app, ["promote", second, "--json"])
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("{"), "nothing but the result is on standard output"
        eventually(all_serve(made, second), WITH_REDIS)

        worlds.send(shop.services.database, clock, worlds.later_walks())
        quick = make_settings(settings.home, database_url)
        with announcements(settings) as announce:
            window = Updater(shop.services.database, quick, clock, shop.artifacts, announce).tick()
        assert window is not None
        assert window.verdict == "promoted", window.reason
        eventually(all_serve(made, window.candidate_version), WITH_REDIS)


@SQLITE_ONLY
def test_with_redis_dead_a_promotion_arrives_by_polling(
    settings: Settings, clock: SetClock, built: BuiltBase, own_redis: OwnRedis
) -> None:
    changes = {"redis_url": Settings(redis_url=own_redis.url).redis_url, "poll_interval": timedelta(seconds=0.5)}
    with listening(settings.model_copy(update=changes), clock) as made:
        soon(all_serve(made, built.adapter_version))
        second = Shop(made[0].app, made[0].client, built).adapter(seed=1)
        own_redis.kill()
        promote(made[0], second)
        eventually(all_serve(made, second), WITHOUT)
        eventually(lambda: "degraded" in str(made[1].redis_part()["state"]), WITHOUT)  # it had no other reason to ask


@SQLITE_ONLY
def test_what_was_missed_while_redis_was_away_is_looked_up_when_it_is_back(
    settings: Settings, clock: SetClock, built: BuiltBase, own_redis: OwnRedis
) -> None:
    changes = {"redis_url": Settings(redis_url=own_redis.url).redis_url}
    with listening(settings.model_copy(update=changes), clock) as made:
        one, two = made
        soon(all_serve(made, built.adapter_version))
        second = Shop(one.app, one.client, built).adapter(seed=1)
        own_redis.kill()
        promote(one, second)
        soon(lambda: one.served == second)
        assert two.served == built.adapter_version, "it polls once in a minute"
        own_redis.start()
        eventually(all_serve(made, second), WITHOUT)


def test_a_message_of_a_later_version_is_passed_over(link: RedisLink, client_of_redis: Redis) -> None:
    heard: list[Change] = []
    bus = Bus(link, {Change.POINTER: lambda: heard.append(Change.POINTER)})
    bus.start()
    soon(lambda: len(heard) == 1)  # the look after the subscription
    for data in ("tomorrow's", b"\xff", Change.CATALOGUE, Change.POINTER):
        client_of_redis.publish(link.key("changes"), data)
    soon(lambda: len(heard) == 2)
    began = time.monotonic()
    bus.stop()
    assert time.monotonic() - began < 5
