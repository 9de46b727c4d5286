"""Any URL of fsspec's is a folder of objects; a wrong one is refused in words that help and tell nothing."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest

from service.errors import ConfigurationError, ObjectMissing, ObjectsError
from service.kit.objects import Entry, ObjectFolder

SECOND = timedelta(seconds=1)


@pytest.fixture
def folder() -> Iterator[ObjectFolder]:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield ObjectFolder("memory://shop/one", SECOND)
    memory.store.clear()


def test_an_object_is_written_listed_read_and_deleted(folder: ObjectFolder, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 1_000_000)
    folder.put("a/small", b"xyz")
    folder.put_file("a/b/large", tmp_path / "f")
    assert folder.names("") == ["a"]
    assert folder.names("a") == ["b", "small"]
    assert folder.names("nothing") == []
    assert folder.entries("a", 10) == [Entry("b/large", 3_000_000), Entry("small", 3)]
    assert folder.read("a/small", 3) == b"xyz"
    assert b"".join(folder.pieces("a/b/large", 3_000_000)) == b"abc" * 1_000_000
    assert abs(datetime.now(UTC) - folder.modified("a/small")) < timedelta(minutes=1)
    folder.delete("a/small")
    folder.delete("a/small")
    assert folder.entries("a", 10) == [Entry("b/large", 3_000_000)]


def test_nothing_larger_than_expected_is_read(folder: ObjectFolder) -> None:
    folder.put("x", b"12345")
    with pytest.raises(ObjectsError, match="5 bytes, more than the 4"):
        folder.read("x", 4)
    for size in (4, 6):
        with pytest.raises(ObjectsError, match=f"5 bytes, not {size}"):
            list(folder.pieces("x", size))
    with pytest.raises(ObjectsError, match="more than 0 objects"):
        folder.entries("", 0)


def test_what_is_not_there_is_missing(folder: ObjectFolder) -> None:
    for ask in (lambda: folder.read("x", 9), lambda: list(folder.pieces("x", 9)), lambda: folder.modified("x")):
        with pytest.raises(ObjectMissing, match="memory://shop/one"):
            ask()


def test_a_place_that_can_be_written_passes_the_check_and_keeps_no_trace(folder: ObjectFolder) -> None:
    folder.check(write=True)
    assert folder.names("") == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuch://x/y", "nosuch:// is no scheme that is known"),
        ("s3://", "names no bucket"),
        ("s3://key:verysecret@bucket/x", "environment"),
        ("s3://bucket/x?key=verysecret", "environment"),
        ("hdfs://host/x", "hdfs://"),
        ("dropbox://x", "needs another package"),
    ],
)
def test_a_wrong_url_is_refused_before_anything_connects(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refused:
        ObjectFolder(url, SECOND)
    assert "verysecret" not in str(refused.value)


def test_without_its_package_s3_is_refused_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.fsspec", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'adaptide\[s3\]'"):
        ObjectFolder("s3://bucket/x", SECOND)
