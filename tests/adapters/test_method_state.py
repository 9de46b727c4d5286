"""What a method keeps beside its adapter: hashed with it, checked before anyone reads it, and given back as it was."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from service.adapters.artifacts import ArtifactStore, Published, VerifiedBase
from service.adapters.contents import METHOD_STATE
from service.errors import ArtifactError
from tests.adapters.tiny import adapter_folder, base_folder

STATE = {
    "adapter.0000/base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.full((2, 4), 0.1, np.float32),
    "windows": np.array([3], np.float32),
    "memory/empty": np.zeros((4, 0), np.float32),
}
State = dict[str, NDArray[np.generic]]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def base(store: ArtifactStore, tmp_path: Path) -> VerifiedBase:
    made = store.publish_base(base_folder(tmp_path / "base"), {})
    return store.open_base(made.id, made.digest)


def publish(store: ArtifactStore, base: VerifiedBase, folder: Path, state: State | None) -> Published:
    adapter_folder(folder)
    if state is not None:
        save_file(state, folder / METHOD_STATE)
    return store.publish_adapter(folder, {"base_id": base.base_id}, 7)


def test_a_state_is_read_back_as_it_was_kept(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> None:
    made = publish(store, base, tmp_path / "x", dict(STATE))

    read = store.read_state(store.open_adapter(made.id, made.digest, base))

    assert read.keys() == STATE.keys()
    for name, array in STATE.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_an_adapter_without_a_state_has_an_empty_one(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> None:
    made = publish(store, base, tmp_path / "x", None)

    assert store.read_state(store.open_adapter(made.id, made.digest, base)) == {}


def test_another_state_is_another_version(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> None:
    other = STATE | {"windows": np.array([4], np.float32)}
    states: list[State | None] = [None, dict(STATE), dict(other)]

    versions = {publish(store, base, tmp_path / str(i), state).id for i, state in enumerate(states)}

    assert len(versions) == 3


def test_a_state_with_a_flipped_bit_refuses_the_adapter(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path
) -> None:
    made = publish(store, base, tmp_path / "x", dict(STATE))
    opened = store.open_adapter(made.id, made.digest, base)
    path = made.path / METHOD_STATE
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))

    for read in (lambda: store.open_adapter(made.id, made.digest, base), lambda: store.read_state(opened)):
        with pytest.raises(ArtifactError, match=f"{made.id}.*{METHOD_STATE}.*sha256"):
            read()


def test_a_state_that_was_taken_away_refuses_the_adapter(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path
) -> None:
    made = publish(store, base, tmp_path / "x", dict(STATE))
    (made.path / METHOD_STATE).unlink()

    with pytest.raises(ArtifactError, match="is missing"):
        store.open_adapter(made.id, made.digest, base)


def test_a_state_that_was_put_there_later_refuses_the_adapter(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path
) -> None:
    made = publish(store, base, tmp_path / "x", None)
    save_file(dict(STATE), made.path / METHOD_STATE)

    with pytest.raises(ArtifactError, match="not in its manifest"):
        store.open_adapter(made.id, made.digest, base)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_never_published(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path, value: float
) -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        publish(store, base, tmp_path / "x", {"windows": np.array([1, value], np.float32)})

    assert not list((store.root / "adapters").glob("*"))


@pytest.mark.parametrize("name", ["", "../up", "/etc/passwd", "a b", "a\nb", "_x", "x" * 201, "gewicht-ä"])
def test_a_state_with_an_odd_name_is_never_published(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ArtifactError, match="no name that a method gives"):
        publish(store, base, tmp_path / "x", {name: np.zeros(1, np.float32)})


def test_a_state_of_whole_numbers_is_never_published(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="I64"):
        publish(store, base, tmp_path / "x", {"windows": np.array([1])})


def test_a_state_that_is_no_safetensors_file_is_never_published(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path
) -> None:
    folder = adapter_folder(tmp_path / "x")
    (folder / METHOD_STATE).write_bytes(b"\x80\x04.not a tensor in sight")

    with pytest.raises(ArtifactError, match="safetensors"):
        store.publish_adapter(folder, {"base_id": base.base_id}, 7)


@pytest.mark.parametrize("name", ["method_state.pt", "method_state.bin", "state.safetensors"])
def test_a_state_under_another_name_is_never_published(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path, name: str
) -> None:
    folder = adapter_folder(tmp_path / "x")
    save_file(dict(STATE), folder / name)

    with pytest.raises(ArtifactError, match="may not be in it"):
        store.publish_adapter(folder, {"base_id": base.base_id}, 7)
