"""Keys at their limits, and what is written down about them."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.access.schemas import Scope
from service.access.service import (
    CACHE_SECONDS,
    LATELY_SECONDS,
    MAX_EXPIRES_IN,
    MAX_NAME,
    AccessService,
    KeyUse,
    key_use_writer,
    noting,
)
from service.access.tables import api_keys
from service.audit import repository as audit
from service.errors import InvalidRequest, StoreUnavailable, Unauthenticated
from service.kit import keys
from service.kit.db import Database
from tests.access.test_keys import READ, Stopwatch
from tests.conftest import SetClock


@pytest.fixture
def stopwatch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def access(database: Database, clock: SetClock, stopwatch: Stopwatch) -> AccessService:
    return AccessService(database, clock, stopwatch)


def test_a_token_names_its_key_and_holds_256_random_bits() -> None:
    made, other = keys.new_key(), keys.new_key()
    assert re.fullmatch(rf"adp_{made.key_id}_[A-Za-z0-9_-]{{43}}", made.token)
    assert re.fullmatch("[0-9a-f]{12}", made.key_id)
    assert made.digest == keys.digest(made.token)
    assert (made.key_id, made.token) != (other.key_id, other.token)


@pytest.mark.parametrize(
    ("token", "key_id"),
    [("adp_k_s", "k"), ("adp_k_s_s", "k"), ("adp__s", None), ("adp_k", None), ("xyz_k_s", None), ("ADP_k_s", None)],
)
def test_the_public_part_of_a_token_is_what_stands_between_the_first_two_lines(token: str, key_id: str | None) -> None:
    assert keys.key_id_of(token) == key_id


def test_what_an_admin_did_with_keys_is_on_record(access: AccessService, database: Database, clock: SetClock) -> None:
    key = access.create("shop", frozenset({Scope.WRITE, Scope.READ}), actor="key:root").key
    assert access.revoke(key.key_id, actor="cli").key_id == key.key_id
    with database.read() as connection:
        revoked, created = audit.page(connection, limit=9, before=None)
    wanted = ["actor", "action", "subject", "details", "created_at"]
    assert [created[name] for name in wanted] == [
        "key:root",
        "key.create",
        key.key_id,
        {"name": "shop", "scopes": ["read", "write"]},
        clock.now,
    ]
    assert [revoked[name] for name in wanted] == ["cli", "key.revoke", key.key_id, None, clock.now]


def test_revoking_again_is_no_second_deed(access: AccessService, database: Database, clock: SetClock) -> None:
    key = access.create("shop", READ, actor="cli").key
    first = access.revoke(key.key_id, actor="cli")
    clock.advance(hours=1)
    assert access.revoke(key.key_id, actor="cli") == first
    with database.read() as connection:
        assert [entry["action"] for entry in audit.page(connection, limit=9, before=None)] == [
            "key.revoke",
            "key.create",
        ]


@pytest.mark.parametrize("name", ["a", "n" * MAX_NAME, "é b"])
def test_a_name_of_up_to_its_length_is_taken(access: AccessService, name: str) -> None:
    assert access.create(name, READ, actor="cli").key.name == name


@pytest.mark.parametrize("name", ["", " ", "n" * (MAX_NAME + 1), "a\nb", "a\x00"])
def test_another_name_is_refused_at_its_place(access: AccessService, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        access.create(name, READ, actor="cli")
    assert [(error.pointer, error.code) for error in refused.value.errors] == [("/name", "invalid_name")]
    assert access.list() == []


def test_every_wrong_field_is_named_at_once(access: AccessService) -> None:
    with pytest.raises(InvalidRequest) as refused:
        access.create("", frozenset(), actor="cli", expires_in=timedelta(0))
    found = [(error.pointer, error.code) for error in refused.value.errors]
    assert found == [("/name", "invalid_name"), ("/scopes", "missing"), ("/expires_in", "out_of_range")]
    assert refused.value.detail == "; ".join(error.detail for error in refused.value.errors)
    assert refused.value.errors[1].detail == "a key needs at least one scope: read, write, admin"


def test_a_key_may_live_ten_years_and_no_longer(access: AccessService, clock: SetClock) -> None:
    assert access.create("a", READ, actor="cli", expires_in=MAX_EXPIRES_IN).key.expires_at == clock.now + MAX_EXPIRES_IN
    assert access.create("b", READ, actor="cli").key.expires_at is None
    with pytest.raises(InvalidRequest, match="3650 days"):
        access.create("c", READ, actor="cli", expires_in=MAX_EXPIRES_IN + timedelta(microseconds=1))


def test_a_key_is_good_until_the_moment_that_it_expires(access: AccessService, clock: SetClock) -> None:
    token = access.create("a", READ, actor="cli", expires_in=timedelta(seconds=10)).token
    clock.advance(seconds=9)
    assert access.authenticate(token).name == "a"
    clock.advance(seconds=1)
    with pytest.raises(Unauthenticated):  # though it was looked up just now
        access.authenticate(token)


def test_what_was_looked_up_is_remembered_for_its_seconds_and_no_longer(
    access: AccessService, stopwatch: Stopwatch, database: Database
) -> None:
    token = access.create("a", READ, actor="cli").token
    assert access.remembered(token) is None
    found = access.authenticate(token)
    stopwatch.seconds += CACHE_SECONDS
    assert access.remembered(token) == found
    assert access.remembered(token + "x") is None
    with database.write() as connection:  # behind its back
        connection.execute(sa.delete(api_keys))
    assert access.authenticate(token) == found
    stopwatch.seconds += 0.001
    assert access.remembered(token) is None
    with pytest.raises(Unauthenticated):
        access.authenticate(token)


def test_a_key_that_was_refused_is_forgotten(access: AccessService, stopwatch: Stopwatch, database: Database) -> None:
    token = access.create("a", READ, actor="cli").token
    access.authenticate(token)
    with database.write() as connection:
        connection.execute(sa.delete(api_keys))
    stopwatch.seconds += CACHE_SECONDS + 1
    with pytest.raises(Unauthenticated):
        access.authenticate(token)
    assert LATELY_SECONDS > CACHE_SECONDS  # so that a forgetful store would still know it
    assert access._recall(keys.digest(token), LATELY_SECONDS) is None


@pytest.mark.parametrize("key_id", ["a" * 33, "a" * 31 + "-", "é\x00", "a-b"])
def test_a_token_that_cannot_be_one_is_not_looked_up(tmp_path: Path, clock: SetClock, key_id: str) -> None:
    access = AccessService(Database(f"sqlite:///{tmp_path}/nowhere/adaptide.db"), clock)
    with pytest.raises(Unauthenticated):
        access.authenticate(f"adp_{key_id}_secret")
    with pytest.raises(StoreUnavailable):
        access.authenticate("adp_0123_secret")


def test_a_key_id_of_32_characters_is_looked_up(access: AccessService, database: Database) -> None:
    token = f"adp_{'a' * 32}_secret"
    key = access.create("long", READ, actor="cli").key
    with database.write() as connection:
        change = api_keys.update().where(api_keys.c.key_id == key.key_id)
        connection.execute(change.values(key_id="a" * 32, digest=keys.digest(token)))
    assert access.authenticate(token).name == "long"


def test_no_more_tokens_are_remembered_than_there_is_room_for(
    access: AccessService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.access.service._CACHE_SIZE", 2)
    tokens = [access.create(f"k{i}", READ, actor="cli").token for i in range(3)]
    for token in tokens[:2]:
        access.authenticate(token)
    assert [access.remembered(token) is not None for token in tokens] == [True, True, False]
    access.authenticate(tokens[2])
    assert [access.remembered(token) is not None for token in tokens] == [False, False, True]


def test_the_last_use_is_noted_once_a_minute(access: AccessService, clock: SetClock, stopwatch: Stopwatch) -> None:
    token = access.create("a", READ, actor="cli").token
    first = clock.now

    def used(seconds: float) -> object:
        clock.advance(seconds=seconds)
        stopwatch.seconds += CACHE_SECONDS + 1
        access.authenticate(token)
        [key] = access.list()
        return key.last_used_at

    assert used(0) == first
    assert used(59) == first
    assert used(1) == first + timedelta(minutes=1)


def test_a_use_that_cannot_be_noted_refuses_nobody(database: Database, database_url: str, clock: SetClock) -> None:
    impatient = Database(database_url, lock_timeout_s=0.2)
    access = AccessService(impatient, clock)
    created = access.create("a", READ, actor="cli")
    with database.write() as connection:  # somebody else's, in the way
        connection.execute(api_keys.update().values(name="b"))
        assert access.authenticate(created.token).key_id == created.key.key_id
    [key] = access.list()
    assert key.last_used_at is None
    impatient.close()


def test_who_notes_uses_is_told_once_a_minute_even_if_it_cannot(
    database: Database, clock: SetClock, stopwatch: Stopwatch
) -> None:
    told: list[KeyUse] = []
    access = AccessService(database, clock, stopwatch, note_use=told.append)
    created = access.create("a", READ, actor="cli")
    for seconds in (0, 59, 1):
        clock.advance(seconds=seconds)
        stopwatch.seconds += CACHE_SECONDS + 1
        access.authenticate(created.token)
    assert [at - told[0][1] for _, at in told] == [timedelta(0), timedelta(minutes=1)]
    assert access.list()[0].last_used_at is None


def test_uses_are_stored_beside_the_requests(database: Database, clock: SetClock) -> None:
    writer = key_use_writer(database)
    access = AccessService(database, clock, note_use=noting(writer))
    created = access.create("a", READ, actor="cli")
    writer.start()
    access.authenticate(created.token)
    writer.stop()
    assert access.list()[0].last_used_at == clock()
    access.authenticate(created.token)  # stopping: nobody is refused
