"""A Redis that other tests use too (keys with a prefix of the test's own), and one that a test may kill.

The first is ADAPTIDE_TEST_REDIS_URL; without a server there, or without the program `redis-server` for the second,
tests are skipped, or fail with ADAPTIDE_TEST_REQUIRE_SERVICES=1.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis, RedisError

from service.kit.redis_link import RedisLink
from tests.conftest import REQUIRE_SERVICES
from tests.shared.servers import OwnRedis

REDIS_URL = os.environ.get("ADAPTIDE_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")
PATIENCE = timedelta(seconds=5)
"""A busy machine must not look like a Redis that is away."""


def _missing(reason: str) -> None:
    if REQUIRE_SERVICES:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_url() -> str:
    try:
        with Redis.from_url(REDIS_URL, socket_connect_timeout=5) as client:
            client.ping()
    except RedisError as error:
        _missing(f"no Redis at ADAPTIDE_TEST_REDIS_URL: {error}")
    return REDIS_URL


@pytest.fixture
def prefix(redis_url: str) -> Iterator[str]:
    """Of this test's keys, which are gone afterwards."""
    made = f"adaptide-test-{uuid.uuid4().hex[:12]}"
    yield made
    with Redis.from_url(redis_url) as client:
        for key in client.scan_iter(f"{made}:*"):
            client.delete(key)


@pytest.fixture
def client_of_redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def link(redis_url: str, prefix: str) -> Iterator[RedisLink]:
    """Connected."""
    made = RedisLink(redis_url, prefix=prefix, timeout=PATIENCE)
    assert made.connect(), made.state()
    yield made
    made.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    """Runs."""
    program = shutil.which("redis-server")
    if program is None:
        _missing("the program redis-server is not installed")
        raise AssertionError  # _missing raises
    made = OwnRedis(program, tmp_path / "redis")
    made.start()
    yield made
    made.kill()
