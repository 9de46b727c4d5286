"""A Redis that is wrong, old, away or back is told apart, and nobody waits for it."""

import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis

from service.adapters.bus import Bus, Change
from service.errors import ConfigurationError
from service.kit.rates import SharedRates
from service.kit.redis_link import RedisAway, RedisLink
from service.recommend.history import UserPast, read_through
from service.recommend.past_cache import PastCache
from service.recommend.popularity_cache import Counts, SharedCounts
from service.settings import Settings
from service.shared import make_link
from tests.conftest import SetClock
from tests.shared.conftest import PATIENCE
from tests.shared.servers import OwnRedis, replicas, soon
from tests.worlds import eventually

SQLITE_ONLY = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:6379",
        "127.0.0.1:6379",
        "redis://",
        "redis://host:port",
        "redis://host/name",
        "redis://u:hunter2@host:70000/0",
        "redis://:hunter2/x@host",
        "redis://:hunter2@host/0?no_such_option=1",
        "unix://",
    ],
)
def test_a_wrong_url_is_a_configuration_error_that_shows_no_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="ADAPTIDE_REDIS_URL") as raised:
        make_link(Settings(redis_url=url))
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in repr(Settings(redis_url=url))


def test_a_missing_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)  # what Python does when a package is not there
    with pytest.raises(ConfigurationError, match=r"pip install 'adaptide\[redis\]'"):
        make_link(Settings(redis_url=NOWHERE))


def test_a_redis_that_is_not_there_is_refused_at_once() -> None:
    link = RedisLink(NOWHERE)
    assert not link.connect()
    assert link.state().word == "unreachable"
    with pytest.raises(RedisAway):
        link.run(lambda client: client.ping())


def test_wrong_credentials_are_told_apart(own_redis: OwnRedis) -> None:
    own_redis.kill()
    own_redis.start("--requirepass", "open sesame")
    for given in ("", ":wrong@", "nobody:wrong@"):
        link = RedisLink(own_redis.url.replace("//", f"//{given}"))
        assert not link.connect()
        assert link.state().word == "refused", given
        assert "ADAPTIDE_REDIS_URL" in (link.state().detail or "")
    right = RedisLink(own_redis.url.replace("//", "//:open%20sesame@"))
    assert right.connect(), right.state()
    right.stop()


def test_the_rights_that_the_documentation_names_are_enough(own_redis: OwnRedis) -> None:
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    [line] = [line.strip() for line in page.splitlines() if line.strip().startswith("user adaptide on")]
    own_redis.kill()
    own_redis.start("--user", *line.split()[1:])
    link = RedisLink(own_redis.url.replace("//", "//adaptide:PASSWORD@"), timeout=PATIENCE)
    assert link.connect(), link.state()
    cache = PastCache(link, Settings())
    past = UserPast(("a",), ("a",))
    for _ in range(2):
        read_through(cache, ["u"], lambda users: dict.fromkeys(users, past))
    assert cache.look_up(["u"]) == [past]
    cache.forget(["u"])
    assert link.up
    assert SharedRates(link, 1.0, 1).take(["k"]) == [0]
    counts = SharedCounts(link, timedelta(days=1), (), every=timedelta(milliseconds=1))
    for through_seq in (1, 2):
        counts.share(Counts(through_seq, time.time(), 0.0, {"a": 1.0}))
        time.sleep(0.005)
    found = counts.load(2)
    assert found is not None
    assert found.through_seq == 2
    heard = threading.Event()
    bus = Bus(link, {Change.POINTER: heard.set})
    bus.start()
    assert heard.wait(30), "it did not subscribe"
    heard.clear()
    bus.announce(Change.POINTER)
    assert heard.wait(30)
    bus.stop()
    with pytest.raises(RedisAway):
        link.run(lambda client: client.keys("*"))
    link.stop()


class _Old(socketserver.StreamRequestHandler):
    """Redis 6.2 as far as anybody asks it."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = [self.rfile.readline() and self.rfile.readline().strip() for _ in range(int(line[1:]))]
            info = b"# Server\r\nredis_version:6.2.14\r\nrun_id:abc\r\n"
            self.wfile.write(b"$%d\r\n%s\r\n" % (len(info), info) if words[0] == b"INFO" else b"+PONG\r\n")


@contextmanager
def old_redis() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Old) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_redis_that_is_too_old_is_not_used_however_often_it_is_tried() -> None:
    with old_redis() as url:
        link = RedisLink(url)
        for _ in range(3):
            assert not link.connect()
            assert link.state().word == "too_old"
            assert "6.2.14" in (link.state().detail or "")
        link.stop()


def test_a_paused_redis_costs_one_timeout_and_then_nothing(own_redis: OwnRedis) -> None:
    link = RedisLink(own_redis.url, timeout=timedelta(seconds=0.2))
    assert link.connect()
    own_redis.pause()
    with pytest.raises(RedisAway):
        link.run(lambda client: client.ping())
    began = time.monotonic()
    for _ in range(1000):
        with pytest.raises(RedisAway):
            link.run(lambda client: client.ping())
    assert time.monotonic() - began < 0.2 * 10, "a call waited although the breaker was open"
    own_redis.go_on()
    soon(link.connect)
    link.stop()


def test_what_a_server_refuses_does_not_open_the_breaker(link: RedisLink) -> None:
    with pytest.raises(RedisAway):
        link.run(lambda client: client.eval("return redis.error_reply('no')", 0))
    assert link.up


def test_the_epoch_stays_with_one_server_and_changes_with_another_start_or_a_missed_message(
    own_redis: OwnRedis,
) -> None:
    def epoch() -> object:
        with Redis(port=own_redis.port) as client:
            return client.get(first.epoch_key)

    first, second = RedisLink(own_redis.url), RedisLink(own_redis.url)
    assert first.connect()
    made = epoch()
    assert made is not None
    assert second.connect()
    assert epoch() == made
    second.distrust()
    assert not second.up
    assert epoch() == made, "it cannot be said before the next connection"
    assert second.connect()
    assert epoch() != made
    made = epoch()
    own_redis.save()
    own_redis.kill()
    own_redis.start()
    assert epoch() == made, "the old content is back"
    first.run(lambda client: client.ping())  # the client connects anew, without the breaker
    assert epoch() != made
    for link in (first, second):
        link.stop()


@SQLITE_ONLY
def test_the_service_starts_without_its_redis_says_so_and_takes_it_when_it_comes(
    settings: Settings, clock: SetClock, own_redis: OwnRedis
) -> None:
    own_redis.kill()
    with replicas(settings.model_copy(update={"redis_url": Settings(redis_url=own_redis.url).redis_url}), clock) as (
        replica,
    ):
        soon(lambda: replica.redis_part()["state"] == "unreachable, degraded")
        soon(replica.is_ready)
        assert "replicas poll" in str(replica.redis_part()["detail"])
        assert replica.client.post("/v1/recommendations", json={"user_id": "u"}).status_code == 200
        own_redis.start()
        eventually(lambda: replica.redis_part()["state"] == "ok", seconds=10)
        assert "adaptide_redis_up 1.0" in replica.client.get("/metrics").text


@SQLITE_ONLY
def test_without_a_url_there_is_no_such_part(settings: Settings, clock: SetClock) -> None:
    with replicas(settings, clock) as (replica,):
        assert "redis" not in replica.client.get("/health/ready").json()["parts"]
