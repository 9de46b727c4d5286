"""A past that is kept is never older than the last event that was acknowledged, whatever happens in between."""

import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from starlette.testclient import TestClient
from typer.testing import CliRunner

from service.events.schemas import Event
from service.kit.db import Database
from service.kit.redis_link import RedisLink
from service.recommend.history import UserPast, load_past, read_through
from service.recommend.past_cache import Lease, PastCache
from service.settings import Settings
from service.users.service import erase_user
from tests import worlds
from tests.adapters.test_commands import _logging_is_put_back  # noqa: F401  # a command configures logging
from tests.conftest import SetClock
from tests.shared.conftest import PATIENCE
from tests.shared.servers import OwnRedis, replicas, soon
from tests.worlds import eventually
from trainer.importer import app as importer

SQLITE_ONLY = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
SETTINGS = Settings(history_items=3, seen_items=4)
OLD, NEW = UserPast(("a",), ("a",)), UserPast(("a", "b"), ("b", "a"))


def event(user: str, event_type: str = "view") -> Event:
    return Event.model_validate(worlds.event("e", user, "i", worlds.START, event_type))


def lease_of(cache: PastCache, user: str = "u") -> Lease:
    [found] = cache.look_up([user])
    assert isinstance(found, Lease)
    return found


@pytest.fixture
def cache(link: RedisLink) -> PastCache:
    return PastCache(link, SETTINGS)


def test_what_is_read_once_is_not_read_again(cache: PastCache) -> None:
    asked: list[list[str]] = []

    def stored(users: Sequence[str]) -> dict[str, UserPast]:
        asked.append(list(users))
        return {user: UserPast((user,), (user,)) for user in users}

    assert read_through(cache, ["u", "v"], stored)["v"] == UserPast(("v",), ("v",))
    assert read_through(cache, ["w", "u", "v"], stored)["u"] == UserPast(("u",), ("u",))
    assert asked == [["u", "v"], ["w"]]


def test_a_past_read_before_an_event_is_not_kept_after_it(cache: PastCache) -> None:
    lease = lease_of(cache)
    cache.stored([event("u")])
    cache.keep({"u": (lease, OLD)})
    later = lease_of(cache)
    cache.keep({"u": (lease, OLD)})  # and not by the lease of somebody else either
    cache.keep({"u": (later, NEW)})
    assert cache.look_up(["u"]) == [NEW]


def test_an_event_ends_its_users_past_only(cache: PastCache) -> None:
    cache.keep({user: (lease_of(cache, user), OLD) for user in ("u", "v", "w")})
    cache.stored([event("u"), event("w", "impression")])
    found = cache.look_up(["u", "v", "w"])
    assert isinstance(found[0], Lease)
    assert found[1:] == [OLD, OLD], "an ignored event type changes no past"


def test_a_past_that_nobody_ends_ends_by_itself(link: RedisLink) -> None:
    """A process that dies between its commit and the message: a lifetime is the bound."""
    cache = PastCache(link, SETTINGS, lifetime=timedelta(seconds=0.2))
    cache.keep({"u": (lease_of(cache), OLD)})
    time.sleep(0.25)
    lease_of(cache)


def test_other_settings_make_another_past(cache: PastCache, link: RedisLink) -> None:
    cache.keep({"u": (lease_of(cache), OLD)})
    lease_of(PastCache(link, Settings(history_items=5)))


def test_a_store_of_everything_lost_is_only_a_miss(cache: PastCache, link: RedisLink, client_of_redis: Redis) -> None:
    lease = lease_of(cache)
    client_of_redis.delete(link.epoch_key, *client_of_redis.keys(link.key("*")))
    cache.keep({"u": (lease, OLD)})
    lease_of(cache)


def test_what_an_earlier_start_of_redis_has_saved_is_not_trusted(own_redis: OwnRedis) -> None:
    link = RedisLink(own_redis.url, timeout=PATIENCE)
    assert link.connect()
    cache = PastCache(link, SETTINGS)
    cache.keep({"u": (lease_of(cache), OLD)})
    own_redis.save()
    cache.stored([event("u")])
    own_redis.kill()
    own_redis.start()  # with the past from before the event
    with Redis(port=own_redis.port) as client:
        assert len(client.keys(link.key("past", "*"))) == 1
    lease_of(cache)
    link.stop()


def test_a_message_that_could_not_be_sent_ends_every_past_as_soon_as_redis_answers(own_redis: OwnRedis) -> None:
    writer = RedisLink(own_redis.url, timeout=timedelta(seconds=0.2))
    reader = RedisLink(own_redis.url, timeout=PATIENCE)
    assert reader.connect()
    writer.start()
    soon(lambda: writer.up)
    cache = PastCache(reader, SETTINGS)
    cache.keep({"u": (lease_of(cache), OLD)})
    assert cache.look_up(["u"]) == [OLD]
    own_redis.pause()
    soon(lambda: not writer.up)  # else the message would wait in the socket, and be heard after all
    PastCache(writer, SETTINGS).stored([event("u")])
    own_redis.go_on()
    eventually(lambda: writer.up, seconds=10)
    lease_of(cache)
    for link in (writer, reader):
        link.stop()


def test_without_redis_nothing_is_kept_and_nothing_fails() -> None:
    link = RedisLink("redis://127.0.0.1:1")
    link.connect()
    cache = PastCache(link, SETTINGS)
    assert cache.look_up(["u"]) == [None]
    cache.stored([event("u")])
    assert read_through(cache, ["u"], lambda users: dict.fromkeys(users, OLD)) == {"u": OLD}
    link.stop()


# Interleavings

USERS, READERS, WRITERS = 1, 2, 2  # pasts of two users have nothing to do with each other
READER = st.tuples(st.just("reader"), st.integers(0, READERS - 1), st.integers(0, USERS - 1))
STEPS = st.one_of(
    READER,
    READER,
    st.tuples(st.just("writer"), st.integers(0, WRITERS - 1), st.integers(0, USERS - 1)),
    st.tuples(st.sampled_from(["erase", "lose", "miss"]), st.just(0), st.integers(0, USERS - 1)),
)
numbers = count()


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Database:
    path: Path = request.getfixturevalue("_sqlite_template")
    (tmp_path / "store.db").write_bytes(path.read_bytes())
    return Database(f"sqlite:///{tmp_path / 'store.db'}")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=8, max_size=30))
def test_every_hit_holds_every_acknowledged_event(
    steps: list[tuple[str, int, int]], store: Database, link: RedisLink, clock: SetClock, client_of_redis: Redis
) -> None:
    """Readers and writers stop between any two of their steps: lease, read, keep; commit, tell."""
    cache, example = PastCache(link, SETTINGS), next(numbers)
    users = [f"{example}-{number}" for number in range(USERS)]

    def past(user: str) -> UserPast:
        with store.read() as connection:
            return load_past(connection, user, history_items=3, seen_items=4, ignored_types=())

    states = [[past(user)] for user in users]  # what the store has held, each as it was after a commit
    acknowledged = [0] * USERS  # the state that somebody was told of
    reading: dict[int, tuple[int, Lease, UserPast | None]] = {}
    writing: dict[int, tuple[int, int]] = {}

    def commit(number: int) -> int:
        serial = next(numbers)
        at = worlds.START + timedelta(seconds=serial)
        worlds.send(store, clock, [worlds.event(f"e{serial}", users[number], f"i{serial}", at)])
        states[number].append(past(users[number]))
        return len(states[number]) - 1

    for what, actor, number in steps:
        user = users[number]
        if what == "reader" and actor not in reading:
            [found] = cache.look_up([user])
            if isinstance(found, UserPast):
                assert found in states[number][acknowledged[number] :]
            else:
                assert found is not None
                reading[actor] = (number, found, None)
        elif what == "reader":
            number, lease, read = reading[actor]
            if read is None:
                reading[actor] = (number, lease, past(users[number]))
            else:
                cache.keep({users[number]: (lease, read)})
                del reading[actor]
        elif what == "writer" and actor not in writing:
            writing[actor] = (number, commit(number))
        elif what == "writer":
            number, state = writing.pop(actor)
            cache.forget([users[number]])
            acknowledged[number] = max(acknowledged[number], state)
        elif what == "erase":
            begun = SetClock(worlds.START)  # only what was stored is refused from now on: later commits are new
            erase_user(store, user, clock=begun, actor="test", on_erased=lambda user: cache.forget([user]))
            states[number].append(past(user))
            acknowledged[number] = len(states[number]) - 1
        elif what == "lose":  # everything, such as by FLUSHALL
            client_of_redis.delete(*client_of_redis.keys(link.key("*")), link.epoch_key)
        else:  # a message that could not be sent, and the connection after it
            state = commit(number)
            link.distrust()
            assert link.connect()
            acknowledged[number] = state


# Through the application


@SQLITE_ONLY
def test_an_event_sent_to_one_replica_is_in_the_next_recommendation_of_another(
    settings: Settings, clock: SetClock, redis_url: str, prefix: str
) -> None:
    shared = {"redis_url": Settings(redis_url=redis_url).redis_url, "redis_prefix": prefix, "redis_timeout": PATIENCE}
    with replicas(settings.model_copy(update=shared), clock, 2) as (one, two):
        soon(lambda: one.link.up and two.link.up)
        items = {"items": worlds.items(range(6))}
        assert one.client.put("/v1/items", json=items).status_code == 200
        two.services.catalogue.refresh()

        def offered(client: TestClient) -> set[str]:
            reply = client.post("/v1/recommendations", json={"user_id": "u"}).json()
            return {item["item_id"] for item in reply["items"]}

        everything = {worlds.item_id(number) for number in range(6)}
        assert offered(two.client) == everything
        for number in range(4):
            sent = {"events": [worlds.event(f"e{number}", "u", worlds.item_id(number), worlds.START)]}
            assert one.client.post("/v1/events", json=sent).status_code == 202
            for replica in (two, one, two):
                assert offered(replica.client) == everything - {worlds.item_id(seen) for seen in range(number + 1)}
        hits = 'adaptide_cache_lookups_total{cache="history",outcome="hit"}'
        assert any(line.startswith(hits) for line in one.client.get("/metrics").text.splitlines())

        with Redis.from_url(redis_url) as client:
            assert len(client.keys(f"{prefix}:past:*")) == 1
            assert one.client.delete("/v1/users/u").json()["events"] == 4
            assert client.keys(f"{prefix}:past:*") == []
        assert offered(two.client) == everything


@SQLITE_ONLY
def test_events_that_a_command_imports_end_pasts_too(
    settings: Settings,
    clock: SetClock,
    link: RedisLink,
    redis_url: str,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = PastCache(link, SETTINGS)
    cache.keep({user: (lease_of(cache, user), OLD) for user in ("u", "v")})
    for name, value in {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "REDIS_PREFIX": link.prefix}.items():
        monkeypatch.setenv(f"ADAPTIDE_{name}", value)
    file = tmp_path / "events.csv"
    file.write_text("user_id,item_id,timestamp\nu,i00,1769990400\n")
    done = CliRunner().invoke(importer, ["events", str(file), "--json"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("{"), "nothing but the result is on standard output"
    found = cache.look_up(["u", "v"])
    assert isinstance(found[0], Lease)
    assert found[1] == OLD
