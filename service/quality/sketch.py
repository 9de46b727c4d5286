"""How many distinct items, across buckets: HyperLogLog (Flajolet et al. 2007), with linear counting for few. Pure.

2,048 registers: 2 KiB a bucket, a standard error of 2.3 %. Of items only: one of users would say something of each.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np

PRECISION = 11
REGISTERS = 1 << PRECISION
_ALPHA = 0.7213 / (1 + 1.079 / REGISTERS)


def sketch(names: Iterable[str]) -> bytes:
    """One byte a register: the longest run of zero bits, plus one, that its names' hashes begin with."""
    registers = bytearray(REGISTERS)
    for name in names:
        bits = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        place, rest = bits >> (64 - PRECISION), bits & ((1 << (64 - PRECISION)) - 1)
        run = 64 - PRECISION - rest.bit_length() + 1
        registers[place] = max(registers[place], run)
    return bytes(registers)


def union(sketches: Sequence[bytes]) -> bytes:
    """The sketch of what any of them has seen; that of nothing for none."""
    if not sketches:
        return bytes(REGISTERS)
    seen = np.frombuffer(b"".join(sketches), np.uint8).reshape(len(sketches), -1)
    return bytes(np.maximum.reduce(seen).tobytes())


def distinct(registers: bytes) -> float:
    """About how many distinct names a sketch has seen."""
    estimate = _ALPHA * REGISTERS**2 / sum(2.0**-run for run in registers)
    empty = registers.count(0)
    return REGISTERS * math.log(REGISTERS / empty) if empty and estimate <= 2.5 * REGISTERS else estimate
