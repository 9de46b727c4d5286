"""The cache is bounded, the longest unused goes first, and what anybody holds stays."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.adapters.cache import ABANDONED_S, Cache
from service.errors import ArtifactUnreachable
from service.kit.files import publish_folder


def fill(cache: Cache, name: str, size: int, used: float) -> Path:
    """An entry of `size` bytes whose latest use was at `used` (seconds since 1970)."""
    with publish_folder(cache.path("adapters", name)) as staging:
        (staging / "weights").write_bytes(b"w" * size)
    del_me = cache.hold("adapters", name)
    del del_me
    os.utime(cache.root / "adapters" / f".lock-{name}", (used, used))
    return cache.path("adapters", name)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10_000)


def test_the_longest_unused_goes_first_and_no_more_than_must(cache: Cache) -> None:
    old, older, new = fill(cache, "old", 4000, 200), fill(cache, "older", 4000, 100), fill(cache, "new", 1000, 300)
    cache.make_room(3000)
    assert (old.exists(), older.exists(), new.exists()) == (True, False, True)
    cache.make_room(5000)
    assert (old.exists(), older.exists(), new.exists()) == (True, False, True)
    assert sorted(path.name for path in old.parent.iterdir()) == [".lock-new", ".lock-old", "new", "old"]


def test_what_is_held_stays_even_beyond_the_bound(cache: Cache) -> None:
    held, free = fill(cache, "held", 6000, 100), fill(cache, "free", 3000, 200)
    hold = cache.hold("adapters", "held")
    cache.make_room(8000)
    assert (held.exists(), free.exists()) == (True, False)
    del hold
    cache.make_room(8000)
    assert not held.exists()


def test_what_another_process_holds_stays(cache: Cache) -> None:
    held = fill(cache, "held", 6000, 100)
    code = (
        "import sys, pathlib; from service.adapters.cache import Cache; "
        f"hold = Cache(pathlib.Path({str(cache.root)!r}), 1).hold('adapters', 'held'); print('held', flush=True); "
        "sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    cache.make_room(8000)
    assert held.exists()
    other.kill()
    other.communicate()
    cache.make_room(8000)
    assert not held.exists()


def test_what_can_never_fit_is_refused_before_anything_is_removed(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = fill(cache, "kept", 4000, 100)
    with pytest.raises(ArtifactUnreachable, match="ADAPTIDE_ARTIFACTS_CACHE_BYTES"):
        cache.make_room(10_001)
    full = shutil.disk_usage(cache.root)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(ArtifactUnreachable, match="100 bytes left"):
        cache.make_room(1000)
    assert kept.exists()


def test_a_fetch_that_was_killed_is_cleared_away_and_one_in_progress_is_not(cache: Cache) -> None:
    fill(cache, "a", 10, 100)
    killed, running = cache.root / "adapters" / ".staging-1", cache.root / "adapters" / ".staging-2"
    for folder in (killed, running):
        folder.mkdir()
        (folder / "weights").write_bytes(b"w")
    past = time.time() - ABANDONED_S - 60
    os.utime(killed / "weights", (past, past))
    os.utime(killed, (past, past))
    cache.make_room(1)
    assert not killed.exists()
    assert running.exists()


def test_a_cache_that_cannot_be_written_is_out_of_reach_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file", 10_000)
    with pytest.raises(ArtifactUnreachable, match="cannot be used"):
        cache.hold("adapters", "a")
    with pytest.raises(ArtifactUnreachable, match="cannot be used"):
        cache.make_room(1)
