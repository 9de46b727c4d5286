"""A process of the command line keeps what it frees, and so do those that it starts."""

import json
import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, json, os
if sys.argv[1] == "kept":
    from service.kit.allocator import keep_freed_memory
    keep_freed_memory()
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(1_000_000)  # 8 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(json.dumps({"faults": faults(), "environment": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}}))
"""

RESIDENT = """
import json
from service.kit.allocator import give_back_freed_memory, keep_freed_memory
import psutil
keep_freed_memory()
blocks = [bytearray(b"x" * 100_000) for _ in range(1_500)]
top = bytearray(b"x" * 100_000)  # above them, so that freeing them does not shorten the heap
del blocks
kept = psutil.Process().memory_info().rss
give_back_freed_memory()
print(json.dumps({"given_back": kept - psutil.Process().memory_info().rss}))
"""

on_glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not os.confstr("CS_GNU_LIBC_VERSION"), reason="glibc alone"
)


@on_glibc
def test_what_is_kept_is_given_back_when_that_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout)["given_back"] > 100_000_000  # of 150


@on_glibc
def test_memory_that_is_freed_is_there_for_the_next_block() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def run(way: str, **more: str) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, way], env=clean | more, capture_output=True, text=True, check=True
        )
        found: dict[str, object] = json.loads(done.stdout)
        return found

    kept = run("kept")
    assert kept["faults"] < 1_000  # type: ignore[operator]  # 50 blocks of 1,953 pages
    assert set(kept["environment"]) == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}  # type: ignore[call-overload]
    assert run("kept", MALLOC_TOP_PAD_="4096")["environment"]["MALLOC_TOP_PAD_"] == "4096"  # type: ignore[index]
