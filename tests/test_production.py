"""Production does not start on what nobody chose, and says everything that is missing at once."""

import random
from base64 import b64encode

import pytest

from service.errors import ConfigurationError
from service.settings import Settings, load_settings

PASSWORD = "gH3-long-enough"
GOOD = {
    "environment": "production",
    "database_url": f"postgresql://adaptide:{PASSWORD}@db.example/adaptide",
    "redis_url": f"redis://:{PASSWORD}@redis.example:6379/0",
    "artifacts_url": "s3://bucket/prefix",
    "signing_key": "7d1e0a96c3b84f52e9a7d06b1c5f3824",
}


@pytest.fixture(autouse=True)
def _no_test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("ADAPTIDE_TEST_")]:
        monkeypatch.delenv(name)


def refused(**changed: str) -> str:
    with pytest.raises(ConfigurationError) as error:
        load_settings(**(GOOD | changed))
    assert PASSWORD not in error.value.detail
    return error.value.detail


def test_with_everything_named_it_starts() -> None:
    assert load_settings(**GOOD).database_url.get_secret_value() == GOOD["database_url"]


@pytest.mark.parametrize(
    "changed",
    [
        {"redis_url": ""},
        {"redis_url": "redis://127.0.0.1:6379/0"},
        {"redis_url": "redis://localhost"},
        {"redis_url": "unix:///run/redis.sock"},
        {"database_url": "sqlite:////var/lib/adaptide/adaptide.db"},
        {"database_url": "postgresql:///adaptide"},
        {"database_url": "postgresql://adaptide@/adaptide?host=/run/postgresql"},
        {"database_url": "postgresql://adaptide@127.0.0.1/adaptide"},
        {"database_url": "postgresql://adaptide@db.example/adaptide?sslcert=client.pem"},
    ],
)
def test_what_the_file_system_or_a_certificate_guards_needs_no_password(changed: dict[str, str]) -> None:
    load_settings(**(GOOD | changed))


def test_a_password_may_lie_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    without = "postgresql://adaptide@db.example/adaptide"
    assert "ADAPTIDE_DATABASE_URL" in refused(database_url=without)
    monkeypatch.setenv("PGPASSFILE", "/run/secrets/pgpass")
    load_settings(**(GOOD | {"database_url": without}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"database_url": ""}, "ADAPTIDE_DATABASE_URL"),
        ({"artifacts_url": ""}, "ADAPTIDE_ARTIFACTS_URL"),
        ({"database_url": "postgresql://adaptide@10.0.0.7/adaptide"}, "carries a password"),
        ({"database_url": "postgresql://u:postgres@db.example/adaptide"}, "one of its own"),
        ({"database_url": "postgresql://somebody:somebody@db.example/adaptide"}, "one of its own"),
        ({"database_url": "postgresql://u:short@db.example/adaptide"}, "8 characters"),
        ({"redis_url": "redis://redis:6379/0"}, "ADAPTIDE_REDIS_URL carries a password"),
        ({"redis_url": "rediss://:ChangeMe@redis.example"}, "one of its own"),
    ],
)
def test_a_missing_or_well_known_secret_is_named(changed: dict[str, str], words: str) -> None:
    assert words in refused(**changed)


def test_variables_of_tests_have_no_place_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIDE_TEST_FAIL_AT", "x")
    assert "ADAPTIDE_TEST_FAIL_AT" in refused()


def test_everything_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIDE_TEST_X", "1")
    said = refused(database_url="postgresql://u@db.example/d", redis_url="redis://redis.example", artifacts_url="")
    for name in ("ADAPTIDE_DATABASE_URL", "ADAPTIDE_REDIS_URL", "ADAPTIDE_ARTIFACTS_URL", "ADAPTIDE_TEST_X"):
        assert name in said
    assert "production refuses to start until" in said


def test_a_signing_key_must_be_set() -> None:
    assert "ADAPTIDE_SIGNING_KEY is set" in refused(signing_key="")


@pytest.mark.parametrize(
    "key",
    [
        "changeme" * 4,
        "ChangeMe-changeme-CHANGEME-changeme!",
        "secret1" * 6,
        "adaptide_example_password_default_test",
        "0" * 32,
        "abcabc7" * 5,
        "0123456789abcdef" * 2,
        "my-own-secret-key!" * 2,
    ],
)
def test_a_signing_key_that_can_be_guessed_is_refused_and_so_is_one_that_is_accepted_beside(key: str) -> None:
    said = refused(signing_key=key)
    assert "ADAPTIDE_SIGNING_KEY is random" in said
    assert "openssl rand -hex 32" in said
    assert key not in said
    assert "ADAPTIDE_SIGNING_KEYS_ACCEPTED" in refused(signing_keys_accepted=f"{GOOD['signing_key']},{key}")


def test_any_random_signing_key_is_taken() -> None:
    chance = random.Random(1)
    for _ in range(50):
        for key in (chance.randbytes(32).hex(), chance.randbytes(16).hex(), b64encode(chance.randbytes(24)).decode()):
            load_settings(**(GOOD | {"signing_key": key, "signing_keys_accepted": key[::-1]}))
    load_settings(**(GOOD | {"signing_key": "correct-horse-battery-staple-test"}))


def test_development_takes_them_all() -> None:
    Settings(database_url="postgresql://postgres@db.example/test", redis_url="redis://redis:6379/0")
