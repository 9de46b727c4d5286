"""What is published can be opened as it was; whatever was changed, planted or mixed up is refused before any load."""

import hashlib
import json
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from safetensors.numpy import save_file

from service.adapters.artifacts import ArtifactStore, Published, VerifiedBase
from service.adapters.lora import ADAPTED_LAYERS
from service.errors import ArtifactError, ArtifactMissing
from tests.adapters.tiny import CONFIG, MODEL, TARGETS, adapter_folder, adapter_tensors, base_folder

A_TENSOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def base(store: ArtifactStore, tmp_path: Path) -> VerifiedBase:
    made = store.publish_base(base_folder(tmp_path / "base"), {"trained_through": "2026-02-01"})
    return store.open_base(made.id, made.digest)


@pytest.fixture
def adapter(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> Published:
    return store.publish_adapter(adapter_folder(tmp_path / "adapter"), {"base_id": base.base_id}, 7)


def forged(store: ArtifactStore, published: Published, base: VerifiedBase) -> Published:
    """The folder as it is now, under a manifest that agrees with it: what somebody with the store's key could do."""
    document = orjson.loads((published.path / "manifest.json").read_bytes())
    document["files"] = {
        name: {
            "sha256": hashlib.sha256((published.path / name).read_bytes()).hexdigest(),
            "bytes": (published.path / name).stat().st_size,
        }
        for name in document["files"]
    }
    data = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    digest = hashlib.sha256(data).hexdigest()
    version = f"a000007-{digest[:12]}"
    shutil.copytree(published.path, store.root / "adapters" / version)
    (store.root / "adapters" / version / "manifest.json").write_bytes(data)
    return Published(version, digest, store.root / "adapters" / version)


def test_a_base_opens_as_it_was_published(store: ArtifactStore, base: VerifiedBase) -> None:
    assert base.base_id == f"b-{base.digest[:16]}"
    assert base.metadata == {"trained_through": "2026-02-01"}
    assert json.loads((base.path / "model" / "config.json").read_text()) == MODEL


def test_an_adapter_opens_with_its_tensors(store: ArtifactStore, base: VerifiedBase, adapter: Published) -> None:
    opened = store.open_adapter(adapter.id, adapter.digest, base)
    assert adapter.id == f"a000007-{adapter.digest[:12]}"
    assert opened.config["r"] == 2
    assert opened.tensors.keys() == adapter_tensors().keys()
    np.testing.assert_array_equal(opened.tensors[A_TENSOR], np.full((2, 4), 0.25, np.float32))


def test_publishing_the_same_content_again_changes_nothing(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path
) -> None:
    sources = [adapter_folder(tmp_path / name) for name in ("one", "two")]
    first, second = (store.publish_adapter(source, {"base_id": base.base_id}, 1) for source in sources)
    assert first == second
    assert [path.name for path in (store.root / "adapters").iterdir()] == [first.id]


def test_a_published_name_with_other_bytes_is_an_error(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, tmp_path: Path
) -> None:
    (adapter.path / "adapter_config.json").write_text(json.dumps(CONFIG | {"lora_alpha": 8}))
    with pytest.raises(ArtifactError, match="is not what"):
        store.publish_adapter(adapter_folder(tmp_path / "again"), {"base_id": base.base_id}, 7)


def test_two_publishers_of_the_same_content_both_succeed(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path
) -> None:
    sources = [adapter_folder(tmp_path / f"s{i}") for i in range(8)]
    found: list[Published] = []
    threads = [
        threading.Thread(target=lambda s=s: found.append(store.publish_adapter(s, {"base_id": base.base_id})))
        for s in sources
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({published.id for published in found}) == 1
    assert [path.name for path in (store.root / "adapters").iterdir()] == [found[0].id]


@pytest.mark.parametrize(("dtype", "atol"), [(np.float16, 0), (np.float32, 0)])
def test_half_and_single_precision_are_read(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path, dtype: Any, atol: float
) -> None:
    tensors = {name: tensor.astype(dtype) for name, tensor in adapter_tensors(0.25).items()}
    made = store.publish_adapter(adapter_folder(tmp_path / "x", tensors), {"base_id": base.base_id})
    opened = store.open_adapter(made.id, made.digest, base)
    assert opened.tensors[A_TENSOR].dtype == np.float32
    np.testing.assert_allclose(opened.tensors[A_TENSOR], 0.25, atol=atol)


def write_bfloat16(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """A safetensors file of BF16, which NumPy cannot write itself: the upper halves of float32."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = (tensor.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def test_bfloat16_is_decoded(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "x")
    write_bfloat16(folder / "adapter_model.safetensors", adapter_tensors(-1.5))
    made = store.publish_adapter(folder, {"base_id": base.base_id})
    opened = store.open_adapter(made.id, made.digest, base)
    np.testing.assert_array_equal(opened.tensors[A_TENSOR], np.full((2, 4), -1.5, np.float32))


def test_bfloat16_infinity_is_refused(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "x")
    write_bfloat16(folder / "adapter_model.safetensors", adapter_tensors(np.inf))
    with pytest.raises(ArtifactError, match="not finite"):
        store.publish_adapter(folder, {"base_id": base.base_id})


HOSTILE_NAMES = [
    "../a000007-000000000000",
    "..",
    "",
    "%2e%2e/a000007-000000000000",
    "a000007-000000000000\x00",
    "a000007-000000000000\n",
    "/etc/passwd",
    "https://example.org/a000007-000000000000",
    "a000007-00000000000G",
    "A000007-000000000000",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_is_no_name_is_refused(store: ArtifactStore, base: VerifiedBase, name: str) -> None:
    with pytest.raises(ArtifactError, match="no adapter version"):
        store.open_adapter(name, "0" * 64, base)
    with pytest.raises(ArtifactError, match="no base id"):
        store.open_base(name, "0" * 64)


def test_a_folder_that_is_not_there_is_missing_not_damaged(store: ArtifactStore, base: VerifiedBase) -> None:
    with pytest.raises(ArtifactMissing, match="ADAPTIDE_ARTIFACTS_URL"):
        store.open_adapter("a000001-000000000000", "0" * 64, base)


def test_a_linked_file_is_refused(store: ArtifactStore, base: VerifiedBase, adapter: Published, tmp_path: Path) -> None:
    weights = adapter.path / "adapter_model.safetensors"
    shutil.move(weights, tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="link"):
        store.open_adapter(adapter.id, adapter.digest, base)


def test_a_linked_folder_is_refused(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, tmp_path: Path
) -> None:
    shutil.move(adapter.path, tmp_path / "elsewhere")
    adapter.path.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(ArtifactError, match="link"):
        store.open_adapter(adapter.id, adapter.digest, base)


def test_a_linked_folder_inside_a_base_is_refused(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> None:
    shutil.move(base.path / "codec", tmp_path / "elsewhere")
    (base.path / "codec").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(ArtifactError, match="link"):
        store.open_base(base.base_id, base.digest)


def test_a_named_pipe_is_refused_without_waiting_for_it(
    store: ArtifactStore, base: VerifiedBase, adapter: Published
) -> None:
    (adapter.path / "adapter_config.json").unlink()
    os.mkfifo(adapter.path / "adapter_config.json")
    with pytest.raises(ArtifactError):
        store.open_adapter(adapter.id, adapter.digest, base)


def test_a_file_that_the_manifest_does_not_list_is_refused(
    store: ArtifactStore, base: VerifiedBase, adapter: Published
) -> None:
    (adapter.path / "adapter_model.bin").write_bytes(pickle.dumps(print))
    with pytest.raises(ArtifactError, match="not in its manifest"):
        store.open_adapter(adapter.id, adapter.digest, base)


def test_a_missing_file_is_refused(store: ArtifactStore, base: VerifiedBase, adapter: Published) -> None:
    (adapter.path / "adapter_config.json").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        store.open_adapter(adapter.id, adapter.digest, base)


def test_an_adapter_of_another_base_is_refused(store: ArtifactStore, adapter: Published, tmp_path: Path) -> None:
    other = store.publish_base(base_folder(tmp_path / "other", value=0.75), {})
    with pytest.raises(ArtifactError, match="made for base"):
        store.open_adapter(adapter.id, adapter.digest, store.open_base(other.id, other.digest))


def test_another_digest_than_the_registered_one_is_refused(
    store: ArtifactStore, base: VerifiedBase, adapter: Published
) -> None:
    """Files and manifest agree, but they are not what was registered under this name."""
    (adapter.path / "adapter_config.json").write_text(json.dumps(CONFIG | {"lora_alpha": 8}))
    again = forged(store, adapter, base)
    with pytest.raises(ArtifactError, match="not the one that was registered"):
        store.open_adapter(again.id, adapter.digest, base)


def test_a_forged_manifest_cannot_reach_outside_its_folder(
    store: ArtifactStore, base: VerifiedBase, adapter: Published
) -> None:
    document = orjson.loads((adapter.path / "manifest.json").read_bytes())
    for name in ("../../../etc/passwd", "/etc/passwd", "%2e%2e/x.json", "a\x00.json", "https://example.org/x.json"):
        document["files"][name] = {"sha256": "0" * 64, "bytes": 1}
        data = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
        digest = hashlib.sha256(data).hexdigest()
        target = store.root / "adapters" / f"a000007-{digest[:12]}"
        shutil.copytree(adapter.path, target)
        (target / "manifest.json").write_bytes(data)
        with pytest.raises(ArtifactError, match="may not be in it"):
            store.open_adapter(target.name, digest, base)
        del document["files"][name]


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_a_pickle_in_disguise_is_refused_and_never_run(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (adapter.path / "adapter_model.safetensors").write_bytes(pickle.dumps(_Bomb()))
    planted = forged(store, adapter, base)
    with pytest.raises(ArtifactError, match="safetensors"):
        store.open_adapter(planted.id, planted.digest, base)
    assert not (tmp_path / "exploded").exists()


def safetensors_bytes(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


F32_PAIR = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HOSTILE_FILES = {
    "empty": b"",
    "header longer than the file": safetensors_bytes(b"{}", length=2**63),
    "oversize header": safetensors_bytes(b"{" + b" " * (17 * 2**20) + b"}"),
    "not JSON": safetensors_bytes(b"\x80\x04\x95"),
    "JSON a hundred thousand deep": safetensors_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a name twice": safetensors_bytes(b'{"a":' + F32_PAIR + b',"a":' + F32_PAIR + b"}", b"\0" * 4),
    "overlap": safetensors_bytes(b'{"a":' + F32_PAIR + b',"b":' + F32_PAIR + b"}", b"\0" * 4),
    "bytes beyond the tensors": safetensors_bytes(b'{"a":' + F32_PAIR + b"}", b"\0" * 8),
    "offsets beyond the file": safetensors_bytes(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 4),
    "negative offset": safetensors_bytes(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'),
    "overflowing shape": safetensors_bytes(
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
    ),
    "unknown dtype": safetensors_bytes(b'{"a":{"dtype":"OBJ","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "a dtype that is a list": safetensors_bytes(b'{"a":{"dtype":[],"shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "metadata that is no map": safetensors_bytes(b'{"__metadata__":[1]}'),
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_a_malformed_weights_file_is_refused(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, name: str
) -> None:
    (adapter.path / "adapter_model.safetensors").write_bytes(HOSTILE_FILES[name])
    planted = forged(store, adapter, base)
    with pytest.raises(ArtifactError):
        store.open_adapter(planted.id, planted.digest, base)


HOSTILE_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"auto_mapping": {"base_model_class": "os"}}, "auto_mapping"),
    ({"use_dora": True}, "use_dora"),
    ({"use_rslora": True}, "use_rslora"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ({"megatron_core": "os"}, "megatron_core"),
    ({"revision": "main"}, "revision"),
    ({"something_new": 1}, "something_new"),
    ({"peft_type": "IA3"}, "peft_type"),
    ({"task_type": "SEQ_CLS"}, "task_type"),
    ({"bias": "all"}, "biases"),
    ({"base_model_name_or_path": "meta/anything"}, "another base model"),
    ({"r": 0}, "r 0"),
    ({"r": True}, "r True"),
    ({"r": 2.0}, "r 2.0"),
    ({"lora_alpha": -1}, "lora_alpha"),
    ({"lora_alpha": 1e9}, "lora_alpha"),
    ({"lora_alpha": True}, "lora_alpha"),
    ({"target_modules": "all-linear"}, "target_modules"),
    ({"target_modules": []}, "target_modules"),
    ({"target_modules": ["lm_head"]}, "target_modules"),
    ({"target_modules": ["q_proj", "q_proj"]}, "twice"),
]


@pytest.mark.parametrize(("changes", "word"), HOSTILE_CONFIGS, ids=lambda value: str(value)[:40])
def test_a_configuration_that_is_no_plain_lora_is_refused(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(ArtifactError, match=word):
        store.publish_adapter(adapter_folder(tmp_path / "x", **changes), {"base_id": base.base_id})


def without(name: str) -> dict[str, np.ndarray[Any, Any]]:
    return {key: value for key, value in adapter_tensors().items() if key != name}


HOSTILE_TENSORS: list[tuple[dict[str, np.ndarray[Any, Any]], str]] = [
    (adapter_tensors() | {A_TENSOR: np.zeros((2, 5), np.float32)}, "shape"),
    (adapter_tensors() | {A_TENSOR: np.zeros((3, 4), np.float32)}, "shape"),
    (adapter_tensors() | {A_TENSOR: np.zeros((8,), np.float32)}, "shape"),
    (adapter_tensors() | {A_TENSOR: np.full((2, 4), np.nan, np.float32)}, "not finite"),
    (adapter_tensors() | {A_TENSOR: np.full((2, 4), np.inf, np.float32)}, "not finite"),
    (adapter_tensors() | {A_TENSOR: np.full((2, 4), 1e6, np.float32)}, "norm"),
    (adapter_tensors() | {A_TENSOR: np.zeros((2, 4), np.int32)}, "F32, F16 or BF16"),
    (adapter_tensors() | {A_TENSOR: np.zeros((2, 4), np.float64)}, "F32, F16 or BF16"),
    (without(A_TENSOR), "missing"),
    (adapter_tensors() | {"base_model.model.lm_head.weight": np.zeros((2, 4), np.float32)}, "no LoRA tensor"),
    (adapter_tensors() | {A_TENSOR.replace("layers.0", "layers.2"): np.zeros((2, 4), np.float32)}, "does not have"),
    (adapter_tensors() | {A_TENSOR.replace("layers.0", "layers.00"): np.zeros((2, 4), np.float32)}, "no LoRA tensor"),
]


@pytest.mark.parametrize(("tensors", "word"), HOSTILE_TENSORS, ids=[str(i) for i in range(len(HOSTILE_TENSORS))])
def test_tensors_that_do_not_fit_the_base_are_refused(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path, tensors: dict[str, np.ndarray[Any, Any]], word: str
) -> None:
    with pytest.raises(ArtifactError, match=word):
        store.publish_adapter(adapter_folder(tmp_path / "x", tensors), {"base_id": base.base_id})


def test_an_update_is_measured_against_the_weight_that_it_is_added_to(store: ArtifactStore, tmp_path: Path) -> None:
    """W is 4 x 4 of 0.5: norm 2. B A of v is 2 v^2 everywhere: with scale 2, norm 16 v^2, and 32 norms at v = 2."""
    source = base_folder(tmp_path / "base")
    weight = "model.layers.0.self_attn.q_proj.weight"
    save_file({weight: np.full((4, 4), 0.5, np.float32)}, source / "model" / "model.safetensors")
    made = store.publish_base(source, {})
    opened = store.open_base(made.id, made.digest)
    assert opened.dimensions.norms == store.read_dimensions(made.id, made.digest).norms == {weight[:-7]: 2.0}

    below, above = (adapter_folder(tmp_path / str(value), adapter_tensors(value)) for value in (1.99, 2.01))

    store.publish_adapter(below, {"base_id": made.id})
    with pytest.raises(ArtifactError, match=r"update of model\.layers\.0\.self_attn\.q_proj is 32\.3 times"):
        store.publish_adapter(above, {"base_id": made.id})


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_the_norms_of_a_base_in_half_precision_are_measured_too(
    store: ArtifactStore, tmp_path: Path, dtype: str
) -> None:
    source, name = base_folder(tmp_path / "base"), "model.layers.0.self_attn.q_proj.weight"
    path = source / "model" / "model.safetensors"
    if dtype == "F16":
        save_file({name: np.full((4, 4), 0.5, np.float16)}, path)
    else:
        write_bfloat16(path, {name: np.full((4, 4), 0.5, np.float32)})
    assert store.publish_base(source, {}).id
    made = store.publish_base(source, {})
    assert list(store.open_base(made.id, made.digest).dimensions.norms.values()) == [2.0]


def test_an_adapter_larger_than_its_base_can_need_is_refused_before_it_is_read(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path
) -> None:
    folder = adapter_folder(tmp_path / "x")
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(ArtifactError, match="which the base's layers do not need"):
        store.publish_adapter(folder, {"base_id": base.base_id})


def test_the_shapes_follow_the_bases_heads(store: ArtifactStore, tmp_path: Path) -> None:
    """4 hidden, 2 heads of 3: q and o are 6 wide, k and v (1 key-value head) 3."""
    made = store.publish_base(base_folder(tmp_path / "wide", head_dim=3), {})
    opened = store.open_base(made.id, made.digest)
    shape = opened.dimensions.of_projection
    assert [shape(t) for t in TARGETS] == [(6, 4), (3, 4), (3, 4), (4, 6), (6, 4), (6, 4), (4, 6)]


OTHER_LAYERS = {"transformer.h.0.attn.c_attn": [12, 4], "transformer.h.0.mlp.c_proj": [4, 16]}


def other_tensors(rank: int = 2) -> dict[str, np.ndarray[Any, Any]]:
    return {
        f"base_model.model.{name}.lora_{side}.weight": np.full(shape, 0.25, np.float32)
        for name, (rows, columns) in OTHER_LAYERS.items()
        for side, shape in (("A", (rank, columns)), ("B", (rows, rank)))
    }


def with_layers(store: ArtifactStore, folder: Path, listed: object) -> VerifiedBase:
    source = base_folder(folder)
    (source / "model" / ADAPTED_LAYERS).write_text(json.dumps(listed))
    made = store.publish_base(source, {})
    return store.open_base(made.id, made.digest)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_base_may_name_other_layers_than_a_llamas_for_its_adapters(
    store: ArtifactStore, tmp_path: Path, transposed: bool
) -> None:
    base = with_layers(store, tmp_path / "base", {"modules": OTHER_LAYERS, "transposed": transposed})
    names = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": transposed}
    made = store.publish_adapter(adapter_folder(tmp_path / "x", other_tensors(), **names), {"base_id": base.base_id})

    opened = store.open_adapter(made.id, made.digest, base)

    assert set(opened.tensors) == set(other_tensors())
    assert store.read_dimensions(base.base_id, base.digest) == base.dimensions
    for wrong, word in (
        (adapter_folder(tmp_path / "llama"), "target_modules among c_attn, c_proj"),
        (adapter_folder(tmp_path / "part", other_tensors(), **names | {"target_modules": ["c_attn"]}), "does not have"),
        (adapter_folder(tmp_path / "wide", other_tensors(3), **names), "shape"),
    ):
        with pytest.raises(ArtifactError, match=word):
            store.publish_adapter(wrong, {"base_id": base.base_id})


def test_transposed_weights_are_a_matter_of_the_base(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="fan_in_fan_out"):
        store.publish_adapter(adapter_folder(tmp_path / "x", fan_in_fan_out=True), {"base_id": base.base_id})


@pytest.mark.parametrize(
    "listed",
    [
        {},
        {"modules": {}},
        {"modules": [["a", 1, 2]]},
        {"modules": {"a.b": [4]}},
        {"modules": {"a.b": [4, 0]}},
        {"modules": {"a.b": [4, True]}},
        {"modules": {"a.b": [4, 2**40]}},
        {"modules": {"../a": [4, 4]}},
        {"modules": {"a..b": [4, 4]}},
        {"modules": {"a.b": [4, 4]}, "transposed": "no"},
    ],
    ids=str,
)
def test_a_list_of_layers_that_is_none_is_refused(store: ArtifactStore, tmp_path: Path, listed: object) -> None:
    with pytest.raises(ArtifactError, match=ADAPTED_LAYERS):
        with_layers(store, tmp_path / "base", listed)


def test_what_fails_verification_leaves_nothing_behind(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError):
        store.publish_adapter(adapter_folder(tmp_path / "x", use_dora=True), {"base_id": base.base_id})
    assert not (store.root / "adapters").exists()


def test_an_adapter_without_a_published_base_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    source = adapter_folder(tmp_path / "x")
    with pytest.raises(ArtifactError, match="names no base_id"):
        store.publish_adapter(source, {})
    with pytest.raises(ArtifactMissing):
        store.publish_adapter(source, {"base_id": "b-0123456789abcdef"})


@pytest.mark.parametrize("name", ["model/pytorch_model.bin", "model/model.pt", "model/modeling.py", "readme.json"])
def test_a_base_with_a_file_that_can_carry_code_is_refused(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    folder = base_folder(tmp_path / "x")
    (folder / name).write_bytes(b"{}")
    with pytest.raises(ArtifactError, match="may not be in it"):
        store.publish_base(folder, {})


def test_a_base_that_asks_for_code_of_its_own_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="auto_map"):
        store.publish_base(base_folder(tmp_path / "x", auto_map={"AutoModel": "modeling.Evil"}), {})


def test_a_base_with_weights_that_are_not_finite_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        store.publish_base(base_folder(tmp_path / "x", value=np.nan), {})


def test_a_base_without_weights_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "x")
    (folder / "model" / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="weights"):
        store.publish_base(folder, {})


def test_a_base_with_a_pickle_for_weights_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "x")
    (folder / "codec" / "codec.safetensors").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ArtifactError, match="safetensors"):
        store.publish_base(folder, {})


def test_a_full_disk_is_a_clear_refusal(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> None:
    source = adapter_folder(tmp_path / "x")
    store.root.joinpath("adapters").write_text("a file where the folder should be")
    with pytest.raises(ArtifactError, match="could not be written"):
        store.publish_adapter(source, {"base_id": base.base_id})


def test_a_file_of_another_safetensors_writer_is_read(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "x")
    save_file(adapter_tensors(), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    made = store.publish_adapter(folder, {"base_id": base.base_id})
    assert store.open_adapter(made.id, made.digest, base).version == made.id
