"""Keys are random, recognisable, and compared without a hint."""

import pytest

from service.kit import keys
from service.kit.keys import digest, key_id_of, matches, new_key


def test_a_key_is_shown_once_and_kept_as_a_digest() -> None:
    key = new_key()

    assert key.digest == digest(key.token)
    assert key.token not in key.digest
    assert matches(key.token, key.digest)
    assert not matches(key.token + "x", key.digest)
    assert new_key().token != key.token


def test_the_public_part_is_found_and_foreign_tokens_have_none() -> None:
    key = new_key()

    assert key_id_of(key.token) == key.key_id
    assert [key_id_of(token) for token in ("", "adp", "adp_", "adp__x", "sk_a_b")] == [None] * 5


@pytest.mark.parametrize("around", ["{}", "key={}&x=1", '{{"a": "{}"}}', "Bearer {}", "/v1/items/{}/x", "({})"])
def test_a_secret_is_taken_out_of_text_and_its_public_part_stays(around: str) -> None:
    new, session = keys.new_key(), keys.new_session()
    for secret, public in ((new.token, f"adp_{new.key_id}_***"), (session, "ads_***")):
        assert keys.redacted(around.format(secret)) == around.format(public)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://adaptide:hunter2@db/x", "postgresql://adaptide:***@db/x"),
        ("to redis://:p%40ss@h:6379/0 and redis://:two@i", "to redis://:***@h:6379/0 and redis://:***@i"),
        ("http://127.0.0.1:8000/docs", "http://127.0.0.1:8000/docs"),
        ("mail a:b@c", "mail a:b@c"),
        ("adp_short adp_ ads_x adaptide_http", "adp_short adp_ ads_x adaptide_http"),
    ],
)
def test_so_are_passwords_in_addresses_and_nothing_else(text: str, shown: str) -> None:
    assert keys.redacted(text) == shown


def test_what_is_derived_is_of_its_secret_and_its_purpose_alone() -> None:
    made = keys.derived("a", "csrf")
    assert made == keys.derived("a", "csrf")
    assert len({made, keys.derived("b", "csrf"), keys.derived("a", "other")}) == 3
    assert keys.same(made, made)
    assert not keys.same(made, made[:-1])
    assert not keys.same("é", made)
