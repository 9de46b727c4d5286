"""Which users a share holds: a hash of salt and user, so that every replica agrees and nothing is stored. Pure."""

import hashlib


def place(salt: str, key: str) -> float:
    """Where a user lies in [0, 1), evenly spread and another place for each salt; below the share means in it."""
    digest = hashlib.blake2b(key.encode(), key=salt.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53  # 53 bits: a float below 1
