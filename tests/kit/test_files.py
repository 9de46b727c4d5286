"""What is published is whole or not there."""

import stat
from pathlib import Path

import pytest

from service.kit.files import new_file, publish_folder, sha256_file


def test_a_folder_appears_only_when_the_block_has_ended(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "adapter"
    with publish_folder(target) as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "weights").write_bytes(b"w")
        assert not target.exists()

    assert (target / "inner" / "weights").read_bytes() == b"w"
    assert stat.S_IMODE((target / "inner" / "weights").stat().st_mode) == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["adapter"]


def write_all(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).write_bytes(b"h")


def test_a_block_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), publish_folder(tmp_path / "a") as staging:
        write_all(staging, ["half", "no/such/folder"])

    assert list(tmp_path.iterdir()) == []


def test_a_published_folder_is_never_replaced(tmp_path: Path) -> None:
    with publish_folder(tmp_path / "a") as staging:
        (staging / "x").write_bytes(b"first")

    with pytest.raises(FileExistsError), publish_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "x").read_bytes() == b"first"


def test_a_hash_is_the_files_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")

    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_new_file_appears_only_when_the_block_has_ended_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(IsADirectoryError), new_file(path) as part:
        part.parent.write_text("fails")
    assert list(tmp_path.iterdir()) == []
    with new_file(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("whole", 0o600)
    with pytest.raises(FileExistsError), new_file(path):
        raise AssertionError
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError), new_file(link):
        raise AssertionError
    assert path.read_text() == "whole"
