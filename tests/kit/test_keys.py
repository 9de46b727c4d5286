"""Keys are random, recognisable, and compared without a hint."""

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
