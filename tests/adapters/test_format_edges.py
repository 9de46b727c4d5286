"""The formats of an artifact at their limits: the last value that is taken, and the first that is not."""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from safetensors.numpy import save, save_file

from service.adapters import contents, lora, manifest, tensors
from service.adapters.artifacts import BASES, ArtifactStore
from service.adapters.folder import check_same, publish_to_folder, write_signature
from service.adapters.lora import Dimensions, check_config, expected_shapes, read_weights
from service.adapters.manifest import FileEntry, Kind, Manifest, decode_manifest
from service.adapters.tensors import TensorInfo
from service.errors import ArtifactError, ArtifactMissing
from tests.adapters.tiny import CONFIG, MODEL, adapter_folder, adapter_tensors, base_folder
from tests.rights import by_anybody, linux

BASE_ID = "b-0123456789abcdef"
HASH = hashlib.sha256(b"abc").hexdigest()


def header(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


def entry(dtype: str = "F32", shape: Any = (1,), start: Any = 0, end: Any = 4, **more: Any) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [start, end],
    } | more


# --- safetensors ---


@pytest.mark.parametrize(("length", "size"), [(2, 10), (2, 11), (16 * 2**20, 2**30)])
def test_a_header_may_be_as_long_as_its_file_and_16_mib(length: int, size: int) -> None:
    assert tensors.header_length(length.to_bytes(8, "little"), size) == length
    assert tensors.header_length(length.to_bytes(8, "little") + b"{", size) == length


@pytest.mark.parametrize(("length", "size"), [(0, 100), (1, 100), (93, 100), (16 * 2**20 + 1, 2**30), (2**63, 100)])
def test_no_other_length_is_a_headers(length: int, size: int) -> None:
    with pytest.raises(ArtifactError, match=f"header would be {length} bytes"):
        tensors.header_length(length.to_bytes(8, "little"), size)


def test_seven_bytes_are_no_file() -> None:
    with pytest.raises(ArtifactError, match="shorter"):
        tensors.header_length(b"\x02" + bytes(6), 100)
    with pytest.raises(ArtifactError, match="shorter"):
        tensors.read_all(b"")


@pytest.mark.parametrize("dtype", list(tensors.ITEM_BYTES))
def test_every_dtype_has_its_size(dtype: str) -> None:
    size = int("".join(c for c in dtype if c.isdigit()) or 8) // 8
    text = header(a=entry(dtype, (3,), 0, 3 * size))
    found = tensors.parse_header(text, 8 + len(text) + 3 * size)
    assert found == {"a": TensorInfo(dtype, (3,), 8 + len(text), 8 + len(text) + 3 * size)}


def test_tensors_may_lie_in_any_order_and_empty_ones_anywhere() -> None:
    text = header(
        b=entry("U8", (2,), 1, 3), a=entry("U8", (1,), 0, 1), none=entry("F32", (0, 7), 1, 1), one=entry("U8", (), 3, 4)
    )
    found = tensors.parse_header(text, 8 + len(text) + 4)
    start = 8 + len(text)
    assert {name: (info.start - start, info.end - start) for name, info in found.items()} == {
        "b": (1, 3),
        "a": (0, 1),
        "none": (1, 1),
        "one": (3, 4),
    }


def test_notes_in_the_header_are_no_tensors() -> None:
    text = header(__metadata__={"format": "pt"})
    assert tensors.parse_header(text, 8 + len(text)) == {}


@pytest.mark.parametrize(
    ("text", "data", "said"),
    [
        (header(a=entry(), b=entry()), 4, "overlap"),
        (header(a=entry(start=4, end=8)), 8, "leave bytes between"),
        (header(a=entry()), 5, "end at byte"),
        (header(a=entry()), 3, "end at byte"),
        (b'{"a":1,"a":1}', 0, "occurs twice"),
        (b"[]", 0, "not an object"),
        (b'{"a"', 0, "cannot be read"),
        (b"\xff\xff", 0, "cannot be read"),
        (header(__metadata__=[]), 0, "map of strings"),
        (header(__metadata__={"a": 1}), 0, "map of strings"),
        (header(a=[]), 0, "is not described"),
        (header(a=entry(more=1)), 4, "is not described"),
        (header(a={"dtype": "F32", "shape": [1]}), 4, "is not described"),
        (header(a=entry("F8")), 4, "tensor 'a' has dtype"),
        (header(a=entry() | {"dtype": ["F32"]}), 4, "tensor 'a' has dtype"),
        (header(a=entry(shape=4)), 4, "impossible"),
        (header(a=entry(shape=[True])), 4, "impossible"),
        (header(a=entry(shape=[1.0])), 4, "impossible"),
        (header(a=entry(shape=[-1], start=4, end=0)), 4, "impossible"),
        (header(a=entry(shape=[1] * 9)), 4, "impossible"),
        (header(a=entry() | {"data_offsets": [0, 4, 4]}), 4, "impossible"),
        (header(a=entry() | {"data_offsets": [4]}), 4, "impossible"),
        (header(a=entry() | {"data_offsets": 4}), 4, "impossible"),
        (header(a=entry(start=-4, end=0)), 4, "impossible"),
        (header(a=entry("U8", shape=[0, 2**48 + 1], end=0)), 0, "impossible"),
        (header(a=entry("U8", shape=[2**47, 2], start=1, end=2**48 + 1)), 0, "impossible"),
        (header(a=entry(shape=[2])), 4, "tensor 'a' is 4 bytes, its shape"),
        (header(a=entry(shape=[1], end=5)), 5, "is 5 bytes, its shape"),
    ],
)
def test_a_header_that_is_not_exact_is_refused(text: bytes, data: int, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        tensors.parse_header(text, 8 + len(text) + data)


def test_eight_sides_and_two_to_the_48_numbers_are_the_most() -> None:
    text = header(a=entry(shape=[1] * 8), b=entry("U8", shape=[0, 2**48], start=4, end=4))
    assert [info.shape for info in tensors.parse_header(text, 8 + len(text) + 4).values()] == [(1,) * 8, (0, 2**48)]


def bits(dtype: str, values: list[float]) -> bytes:
    if dtype == "BF16":
        return (np.array(values, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    return np.array(values, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_what_is_finite_is_seen_in_every_floating_dtype(dtype: str) -> None:
    largest = {"F64": 1.7e308, "F32": 3.4e38, "F16": 65504.0, "BF16": 3.38e38}[dtype]
    assert tensors.is_finite(dtype, bits(dtype, [0.0, -1.5, largest, -largest, 1e-7]))
    for wrong in (np.inf, -np.inf, np.nan):
        assert not tensors.is_finite(dtype, bits(dtype, [1.0, wrong]))


def test_integers_are_finite_whatever_their_bits() -> None:
    assert all(tensors.is_finite(dtype, b"\xff" * 8) for dtype in ("I64", "U32", "I16", "U8", "BOOL"))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_numbers_come_as_they_were_written(dtype: str) -> None:
    values = [1.0, -0.5, 2.0, 0.25, -3.0, 8.0]
    data = b"xx" + bits(dtype, values) + b"yy"
    found = tensors.decode_float32(TensorInfo(dtype, (2, 3), 2, len(data) - 2), data)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(values, np.float32).reshape(2, 3))


def test_weights_are_no_integers() -> None:
    with pytest.raises(ArtifactError, match="not I64"):
        tensors.decode_float32(TensorInfo("I64", (1,), 0, 8), bytes(8))


# --- manifest ---


def document(**changes: Any) -> bytes:
    whole = {"format": 1, "kind": "adapter", "files": {"a": {"sha256": HASH, "bytes": 3}}, "metadata": {"x": 1}}
    return orjson.dumps(whole | changes, option=orjson.OPT_SORT_KEYS)


def test_a_manifest_is_read_as_it_was_written() -> None:
    wanted = Manifest(Kind.ADAPTER, {"a": FileEntry(HASH, 3)}, {"x": 1})
    assert decode_manifest(document(), Kind.ADAPTER) == wanted
    assert json.loads(wanted.encode()) == json.loads(document())
    swapped = Manifest(Kind.ADAPTER, {"b": FileEntry(HASH, 1), "a": FileEntry(HASH, 3)}, {"y": 1, "x": 2})
    sorted_ = Manifest(Kind.ADAPTER, {"a": FileEntry(HASH, 3), "b": FileEntry(HASH, 1)}, {"x": 2, "y": 1})
    assert swapped.encode() == sorted_.encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (document(format=2), "format 1"),
        (document(kind="base"), "format 1"),
        (document(more=1), "format 1"),
        (document() + b" ", "not written as manifests are"),
        (document(files={"a": {"sha256": HASH, "bytes": 3, "more": 1}}), "malformed entry"),
        (document(files={"a": {"sha256": HASH[:-1], "bytes": 3}}), "malformed entry"),
        (document(files={"a": {"sha256": HASH + "0", "bytes": 3}}), "malformed entry"),
        (document(files={"a": {"sha256": HASH.upper(), "bytes": 3}}), "malformed entry"),
        (document(files={"a": {"sha256": HASH, "bytes": "3"}}), "malformed entry"),
        (document(files={"a": {"sha256": HASH, "bytes": True}}), "malformed entry"),
        (document(files={"a": {"sha256": 5, "bytes": 3}}), "cannot be read"),
        (document(files=[]), "cannot be read"),
        (document(files={str(i): {"sha256": HASH, "bytes": 3} for i in range(257)}), "more than 256 files"),
        (document(metadata=[]), "malformed metadata"),
        (b"{}", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"{", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_no_other_document_is_a_manifest(data: bytes, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        decode_manifest(data, Kind.ADAPTER)


def test_every_file_is_listed_by_its_relative_name_and_size(tmp_path: Path) -> None:
    base_folder(tmp_path / "base")
    (tmp_path / "base" / "top.json").write_text("{}")
    found = manifest.list_files(tmp_path / "base")
    assert sorted(found) == [
        "codec/codec.json",
        "codec/codec.safetensors",
        "model/config.json",
        "model/model.safetensors",
        "top.json",
    ]
    assert all(size == (tmp_path / "base" / name).stat().st_size for name, size in found.items())


def test_a_folder_holds_256_files_at_most_beside_manifest_and_signature(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for i in range(manifest.MAX_FILES + 2):
        (tmp_path / "many" / f"{i}.json").touch()
    assert len(manifest.list_files(tmp_path / "many")) == 258
    (tmp_path / "many" / "one-more.json").touch()
    with pytest.raises(ArtifactError, match="more than 256 files"):
        manifest.list_files(tmp_path / "many")


def test_only_plain_files_two_levels_deep_are_listed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert manifest.list_files(tmp_path / "a" / "b") == {}
    (tmp_path / "a" / "b" / "c").mkdir()
    with pytest.raises(ArtifactError, match="too deep"):
        manifest.list_files(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ArtifactError, match="never followed"):
        manifest.list_files(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is not a folder"):
        manifest.list_files(tmp_path / "file")
    with pytest.raises(ArtifactMissing, match="ADAPTIDE_ARTIFACTS_URL"):
        manifest.list_files(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="is a link"):
        manifest.list_files(tmp_path)


def test_what_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: File name too long"):
        manifest.list_files(tmp_path / ("a" * 300))
    os.mkfifo(tmp_path / "pipe")
    before = os.listdir("/proc/self/fd")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ArtifactError, match="is not a plain file"):
            manifest.hash_plain(path)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_folder_in_place_of_a_manifest_is_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    made = store.publish_base(base_folder(tmp_path / "base"), {})
    (made.path / manifest.MANIFEST).unlink()
    (made.path / manifest.MANIFEST).mkdir()
    with pytest.raises(ArtifactError, match="is not a plain file"):
        store.open_base(made.id, made.digest)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert manifest.read_plain(tmp_path / "f", 3) == b"abc"
    with pytest.raises(ArtifactError, match="f is larger than 2 bytes"):
        manifest.read_plain(tmp_path / "f", 2)
    with pytest.raises(ArtifactMissing):
        manifest.read_plain(tmp_path / "g", 2)
    with pytest.raises(ArtifactError, match="cannot be opened"):
        manifest.read_plain(Path("a\x00b"), 2)


def test_what_is_hashed_and_copied_is_the_whole_file(tmp_path: Path) -> None:
    data = os.urandom(2**20 + 7)  # more than is read at once
    (tmp_path / "f").write_bytes(data)
    wanted = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    assert manifest.hash_plain(tmp_path / "f") == wanted
    assert manifest.copy_plain(tmp_path / "f", tmp_path / "g") == wanted
    assert (tmp_path / "g").read_bytes() == data
    manifest.check_entry(tmp_path / "g", wanted)
    with pytest.raises(FileExistsError):
        manifest.copy_plain(tmp_path / "f", tmp_path / "g")
    with pytest.raises(ArtifactError, match=f"f is {len(data)} bytes, the manifest says 1"):
        manifest.check_entry(tmp_path / "f", FileEntry(wanted.sha256, 1))
    with pytest.raises(ArtifactError, match="sha256"):
        manifest.check_entry(tmp_path / "f", FileEntry(HASH, len(data)))


# --- contents ---


@pytest.mark.parametrize(
    "name",
    ["model/config.json", "codec/codec.safetensors", "model/merges.txt", "model/model-00001-of-00002.safetensors"],
)
def test_a_base_holds_json_and_safetensors(name: str) -> None:
    contents.check_name(name, Kind.BASE)


@pytest.mark.parametrize(
    "name",
    [
        "a.json",
        "model/.json",
        "model/-a.json",
        "model/a.py",
        "model/a.bin",
        "codec/vocab.txt",
        "model/../a.json",
        "other/a.json",
        "model/a.json",
        "model/model-1-of-2.safetensors",
        "model/config.json\n",
        "model/é.json",
        "adapter_config.json",
    ],
)
def test_a_base_holds_nothing_else(name: str) -> None:
    with pytest.raises(ArtifactError, match="only a model's and a codec's safetensors and json"):
        contents.check_name(name, Kind.BASE)


def test_an_adapter_holds_its_three_files_only() -> None:
    for name in (contents.ADAPTER_CONFIG, contents.ADAPTER_WEIGHTS, contents.METHOD_STATE):
        contents.check_name(name, Kind.ADAPTER)
    with pytest.raises(ArtifactError, match=r"only adapter_config\.json, adapter_model\.safetensors and method_state"):
        contents.check_name("model/config.json", Kind.ADAPTER)


def test_what_is_in_a_folder_is_what_the_manifest_lists() -> None:
    two = Manifest(
        Kind.ADAPTER, {contents.ADAPTER_CONFIG: FileEntry(HASH, 3), contents.ADAPTER_WEIGHTS: FileEntry(HASH, 5)}, {}
    )
    sizes = {contents.ADAPTER_CONFIG: 3, contents.ADAPTER_WEIGHTS: 5}
    contents.check_sizes(sizes, two)
    with pytest.raises(ArtifactError, match="file 'more' is not in its manifest"):
        contents.check_sizes(sizes | {"more": 1, "z": 1}, two)
    with pytest.raises(ArtifactError, match=r"file 'adapter_config\.json' is missing"):
        contents.check_sizes({}, two)
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors is 4 bytes, the manifest says 5"):
        contents.check_sizes(sizes | {contents.ADAPTER_WEIGHTS: 4}, two)
    with pytest.raises(ArtifactError, match="may not be in it"):
        contents.check_sizes({"run.py": 1}, Manifest(Kind.ADAPTER, {"run.py": FileEntry(HASH, 1)}, {}))


def test_metadata_is_json_of_at_most_4_mib(tmp_path: Path) -> None:
    source = adapter_folder(tmp_path / "adapter")
    empty = len(contents.describe(source, Kind.ADAPTER, {"x": ""}).encode())
    fits = {"x": "a" * (manifest.MAX_MANIFEST_BYTES - empty)}
    assert contents.describe(source, Kind.ADAPTER, fits).metadata == fits
    with pytest.raises(ArtifactError, match="too large"):
        contents.describe(source, Kind.ADAPTER, {"x": fits["x"] + "a"})
    with pytest.raises(ArtifactError, match="not JSON"):
        contents.describe(source, Kind.ADAPTER, {"x": object()})
    (source / "run.py").write_text("")
    with pytest.raises(ArtifactError, match=r"run\.py"):
        contents.describe(source, Kind.ADAPTER, {})


@pytest.mark.parametrize(("data", "said"), [(b"{", "is not JSON"), (b"[]", "is not a JSON object")])
def test_a_document_is_a_json_object(data: bytes, said: str) -> None:
    with pytest.raises(ArtifactError, match=f"name.json {said}"):
        contents.json_object("name.json", data)
    assert contents.json_object("name.json", b'{"a":1}') == {"a": 1}


@pytest.mark.parametrize("base_id", [None, 5, "", "b-0123", BASE_ID + "0", BASE_ID.upper()])
def test_an_adapter_names_its_base(base_id: object) -> None:
    assert contents.named_base(Manifest(Kind.ADAPTER, {}, {"base_id": BASE_ID})) == BASE_ID
    with pytest.raises(ArtifactError, match="names no base_id"):
        contents.named_base(Manifest(Kind.ADAPTER, {}, {"base_id": base_id}))


def described(folder: Path) -> Manifest:
    return contents.describe(folder, Kind.ADAPTER, {"base_id": BASE_ID})


def test_the_parts_of_an_adapter_are_its_configuration_and_weights(tmp_path: Path) -> None:
    folder, dimensions = adapter_folder(tmp_path / "a"), Dimensions.of(MODEL)
    config, weights = contents.adapter_parts(folder, described(folder), BASE_ID, dimensions)
    assert (config, weights.keys()) == (CONFIG, adapter_tensors().keys())
    whole = described(folder)
    (folder / contents.ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="it needs"):
        contents.adapter_parts(folder, described(folder), BASE_ID, dimensions)
    with pytest.raises(ArtifactMissing):
        contents.adapter_parts(folder, whole, BASE_ID, dimensions)


def test_a_methods_state_is_compared_with_the_manifest_before_the_weights(tmp_path: Path) -> None:
    folder, dimensions = adapter_folder(tmp_path / "a"), Dimensions.of(MODEL)
    save_file({"old/one": np.ones(3, np.float32)}, folder / contents.METHOD_STATE)
    listed = described(folder)
    contents.adapter_parts(folder, listed, BASE_ID, dimensions)
    np.testing.assert_array_equal(contents.state_tensors(folder, listed)["old/one"], np.ones(3))
    data = (folder / contents.METHOD_STATE).read_bytes()
    (folder / contents.METHOD_STATE).write_bytes(data[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match=r"method_state\.safetensors is not what"):
        contents.adapter_parts(folder, listed, BASE_ID, dimensions)
    with pytest.raises(ArtifactError, match=r"method_state\.safetensors is not what"):
        contents.state_tensors(folder, listed)


@pytest.mark.parametrize("name", ["a", "A.b/c_9-d", "a" * 200])
def test_a_state_is_named_as_methods_name_it(tmp_path: Path, name: str) -> None:
    folder = adapter_folder(tmp_path / "a")
    save_file({name.replace("-", "_"): np.ones(1, np.float32)}, folder / contents.METHOD_STATE)
    assert list(contents.state_tensors(folder, described(folder))) == [name.replace("-", "_")]


@pytest.mark.parametrize("name", [".a", "/a", "a" * 201, "a b", "é", ""])
def test_a_state_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    folder = adapter_folder(tmp_path / "a")
    save_file({name: np.ones(1, np.float32)}, folder / contents.METHOD_STATE)
    with pytest.raises(ArtifactError, match="no name that a method gives"):
        contents.state_tensors(folder, described(folder))


def test_a_state_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a")
    save_file({"a": np.ones(1, np.float32), "b": np.array([1, np.nan], np.float32)}, folder / contents.METHOD_STATE)
    with pytest.raises(ArtifactError, match="tensor 'b' holds numbers that are not finite"):
        contents.state_tensors(folder, described(folder))


def test_without_a_state_there_is_none(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a")
    assert contents.state_tensors(folder, described(folder)) == {}


def test_a_base_says_what_it_lacks(tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "base")
    (folder / "model" / "vocab.txt").write_text("a\n")
    whole = contents.describe(folder, Kind.BASE, {})
    assert contents.check_base_files(folder, whole) == Dimensions.of(MODEL)

    def without(*names: str) -> Manifest:
        return Manifest(Kind.BASE, {n: e for n, e in whole.files.items() if n not in names}, {})

    for name in ("model/config.json", "model/model.safetensors"):
        with pytest.raises(ArtifactError, match=r"it needs model/config\.json and weights"):
            contents.check_base_files(folder, without(name))
    with pytest.raises(ArtifactError, match=r"it has no model/config\.json"):
        contents.read_dimensions(folder, without("model/config.json"))
    with pytest.raises(ArtifactError, match=r"at most \d+ are read"):
        contents.check_caps({"model/model.safetensors": 256 * 2**30 + 1}, Kind.BASE)
    with pytest.raises(ArtifactError, match="larger than"):
        contents.check_caps({"model/model.safetensors": 256 * 2**30, "codec/codec.json": 1}, Kind.BASE)
    (folder / "model" / "config.json").write_text(json.dumps(MODEL | {"auto_map": {}}))
    with pytest.raises(ArtifactError, match=r"model/config\.json sets auto_map"):
        contents.check_base_files(folder, contents.describe(folder, Kind.BASE, {}))
    (folder / "codec" / "codec.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is not a JSON object"):
        contents.check_base_files(folder, contents.describe(folder, Kind.BASE, {}))


def test_every_tensor_of_a_base_is_looked_at_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_CHUNK", 8)
    folder = base_folder(tmp_path / "base")
    good = np.arange(6, dtype=np.float32)
    save_file({"a": good, "b": good}, folder / "model" / "model.safetensors")
    contents.check_base_weights(folder, contents.describe(folder, Kind.BASE, {}), Dimensions.of(MODEL))
    for name, place in (("a", 0), ("b", 5)):
        wrong = {"a": good.copy(), "b": good.copy()}
        wrong[name][place] = np.inf
        save_file(wrong, folder / "model" / "model.safetensors")
        with pytest.raises(ArtifactError, match=rf"model/model\.safetensors: tensor '{name}' holds numbers"):
            contents.check_base_weights(folder, contents.describe(folder, Kind.BASE, {}), Dimensions.of(MODEL))


def test_a_header_that_is_refused_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"abc")
    with pytest.raises(ArtifactError, match=r"^x\.safetensors: it is shorter"):
        contents.read_header(tmp_path / "x.safetensors")
    data = save({"a": np.ones(2, np.float32)})
    (tmp_path / "x.safetensors").write_bytes(data)
    assert contents.read_header(tmp_path / "x.safetensors") == tensors.read_all(data)


# --- LoRA ---


def test_a_llamas_layers_have_the_sizes_of_its_heads() -> None:
    model = MODEL | {"head_dim": 8, "num_hidden_layers": 1}
    found = Dimensions.of(model)
    layer = "model.layers.0."
    assert dict(found.modules) == {
        f"{layer}self_attn.q_proj": (16, 4),
        f"{layer}self_attn.k_proj": (8, 4),
        f"{layer}self_attn.v_proj": (8, 4),
        f"{layer}self_attn.o_proj": (4, 16),
        f"{layer}mlp.gate_proj": (6, 4),
        f"{layer}mlp.up_proj": (6, 4),
        f"{layer}mlp.down_proj": (4, 6),
    }
    assert not found.transposed
    plain = Dimensions.of(
        {name: value for name, value in model.items() if name not in ("head_dim", "num_key_value_heads")}
    )
    assert plain.of_projection("k_proj") == (4, 4)
    assert plain.of_projection("o_proj") == (4, 4)
    assert plain.targets == tuple(lora.PROJECTIONS)


@pytest.mark.parametrize(
    "name", ["hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "head_dim"]
)
@pytest.mark.parametrize("value", [0, -1, 2**24 + 1, True, 4.0, "4", [4]])
def test_a_size_that_is_none_is_refused(name: str, value: object) -> None:
    with pytest.raises(ArtifactError, match=r"no size|no model has"):
        Dimensions.of(MODEL | {name: value})


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers"])
def test_a_size_that_is_missing_is_named(name: str) -> None:
    for config in ({n: v for n, v in MODEL.items() if n != name}, MODEL | {name: None}):
        with pytest.raises(ArtifactError, match=f"config.json gives {name} = None"):
            Dimensions.of(config)


@pytest.mark.parametrize("name", ["num_attention_heads", "num_key_value_heads"])
def test_all_heads_together_are_a_size_too(name: str) -> None:
    largest = Dimensions.of(MODEL | {name: 2**12, "head_dim": 2**12})
    assert (2**24, 4) in largest.modules.values()
    with pytest.raises(ArtifactError, match="heads times head_dim"):
        Dimensions.of(MODEL | {name: 2**12 + 1, "head_dim": 2**12})


def test_ten_thousand_layers_are_the_most() -> None:
    assert len(Dimensions.of(MODEL | {"num_hidden_layers": lora.MOST_LAYERS}).modules) == 70_000
    with pytest.raises(ArtifactError, match="num_hidden_layers = 10001"):
        Dimensions.of(MODEL | {"num_hidden_layers": 10_001})


def test_a_listed_layer_has_two_sizes() -> None:
    listed = {"modules": {"h.0.attn": [3, 2**24], "_x9": [1, 1]}, "transposed": True}
    found = Dimensions.listed(listed)
    assert (dict(found.modules), found.transposed) == ({"h.0.attn": (3, 2**24), "_x9": (1, 1)}, True)
    assert found.as_json() == listed
    assert not Dimensions.listed({"modules": {"a": [1, 1]}}).transposed
    assert found.targets == ("attn", "_x9")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "lists no modules"),
        ({"modules": {}}, "lists no modules"),
        ({"modules": []}, "lists no modules"),
        ({"modules": {"a": [1, 1]}, "transposed": 1}, "lists no modules"),
        ({"modules": {"a": [1, 1]}, "transposed": None}, "lists no modules"),
        ({"modules": {"a": [1]}}, "no module with two sizes"),
        ({"modules": {"a": [1, 1, 1]}}, "no module with two sizes"),
        ({"modules": {"a": 4}}, "no module with two sizes"),
        ({"modules": {"0a": [1, 1]}}, "no module with two sizes"),
        ({"modules": {"a..b": [1, 1]}}, "no module with two sizes"),
        ({"modules": {"a" * 65: [1, 1]}}, "no module with two sizes"),
        ({"modules": {"a": [0, 1]}}, "gives a = 0"),
        ({"modules": {"a": [1, 2**24 + 1]}}, "gives a = 16777217"),
    ],
)
def test_no_other_list_of_layers_is_one(value: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        Dimensions.listed(value)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 1024, "lora_alpha": 1},
        {"r": 1, "lora_alpha": 64},
        {"r": 1, "lora_alpha": 0.5},
        {"task_type": None},
        {"base_model_name_or_path": BASE_ID},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"megatron_core": None},
        {"lora_dropout": 0.5, "peft_version": "1", "inference_mode": True},
        {"later_option": None, "another": False, "third": "", "fourth": [], "fifth": {}},
        {"target_modules": ["q_proj"]},
        {"fan_in_fan_out": False},
    ],
)
def test_a_plain_lora_is_taken(changes: dict[str, Any]) -> None:
    assert check_config(CONFIG | changes, BASE_ID) == CONFIG | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 0}, "has r 0"),
        ({"r": 1025, "lora_alpha": 1}, "has r 1025"),
        ({"r": True}, "has r True"),
        ({"r": 2.0}, "has r 2.0"),
        ({"r": None}, "has r None"),
        ({"lora_alpha": 0}, "has lora_alpha 0"),
        ({"lora_alpha": 129}, "has lora_alpha 129"),
        ({"lora_alpha": True}, "has lora_alpha True"),
        ({"lora_alpha": "4"}, "has lora_alpha '4'"),
        ({"lora_alpha": float("nan")}, "has lora_alpha nan"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"peft_type": None}, "peft_type None"),
        ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS'"),
        ({"bias": "all"}, "trains biases"),
        ({"base_model_name_or_path": "meta/llama"}, "names another base"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights"),
        ({"megatron_core": "os"}, "sets megatron_core"),
        ({"use_dora": True}, "sets use_dora"),
        ({"later_option": 0.5}, "sets later_option"),
        ({"fan_in_fan_out": True}, "sets fan_in_fan_out"),
        ({"target_modules": []}, "must list target_modules"),
        ({"target_modules": "q_proj"}, "must list target_modules"),
        ({"target_modules": ["q_proj", "lm_head"]}, "must list target_modules"),
        ({"target_modules": ["q_proj", 5]}, "must list target_modules"),
        ({"target_modules": ["q_proj", "q_proj"]}, "twice"),
    ],
)
def test_nothing_else_is_a_plain_lora(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        check_config(CONFIG | changes, BASE_ID)


def test_what_may_be_left_out_of_a_configuration() -> None:
    least = {name: CONFIG[name] for name in ("peft_type", "r", "lora_alpha", "target_modules")}
    assert check_config(least, BASE_ID) == least
    with pytest.raises(ArtifactError, match="not an object"):
        check_config([], BASE_ID)


def test_a_transposed_base_takes_the_flag_and_only_as_a_flag() -> None:
    assert check_config(CONFIG | {"fan_in_fan_out": True}, BASE_ID, transposed=True)
    for changes in ({"fan_in_fan_out": 1}, {"use_dora": True}):
        with pytest.raises(ArtifactError, match="no plain LoRA"):
            check_config(CONFIG | changes, BASE_ID, transposed=True)


def test_the_shapes_of_a_rank_follow_the_layers() -> None:
    dimensions = Dimensions({"a.q": (5, 3), "a.k": (2, 7), "b.q": (4, 4)})
    assert expected_shapes(["q"], 2, dimensions) == {
        "base_model.model.a.q.lora_A.weight": (2, 3),
        "base_model.model.a.q.lora_B.weight": (5, 2),
        "base_model.model.b.q.lora_A.weight": (2, 4),
        "base_model.model.b.q.lora_B.weight": (4, 2),
    }


SMALL = Dimensions({"a.q": (5, 3)})
SMALL_CONFIG = {"r": 2, "lora_alpha": 4, "target_modules": ["q"]}
A, B = "base_model.model.a.q.lora_A.weight", "base_model.model.a.q.lora_B.weight"


def small(**changes: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {A: np.full((2, 3), 0.5, np.float32), B: np.full((5, 2), -0.5, np.float32)} | changes


def test_weights_come_by_name() -> None:
    found = read_weights(save(small()), SMALL_CONFIG, SMALL)
    assert found.keys() == {A, B}
    np.testing.assert_array_equal(found[B], small()[B])


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({A: small()[A]}, rf"tensor '{B}' is missing \(1 in all\)"),
        (small(**{"base_model.model.a.k.lora_A.weight": small()[A]}), "is a layer or module that the base"),
        (small(**{"base_model.model.a.q.weight": small()[A]}), "is no LoRA tensor"),
        (small(**{A: np.ones((3, 2), np.float32)}), r"has shape \[3, 2\], the base needs \[2, 3\]"),
        (small(**{A: np.array([[1, 2, np.nan], [0, 0, 0]], np.float32)}), "not finite"),
        (small(**{A: np.ones((2, 3), np.int32)}), "not I32"),
        (small(**{A: np.array([[1000.1, 0, 0], [0, 0, 0]], np.float32)}), r"has norm 1e\+03, above 1000"),
        (small(**{B: np.full((5, 2), -400, np.float32)}), "above 1000"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        read_weights(save(weights), SMALL_CONFIG, SMALL)


def test_a_norm_of_a_thousand_is_the_most() -> None:
    edge = np.array([[1000, 0, 0], [0, 0, 0]], np.float32)
    assert read_weights(save(small(**{A: edge})), SMALL_CONFIG, SMALL)[A].max() == 1000


# --- a whole artifact ---


def test_a_config_may_not_describe_more_than_there_are_weights(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    with pytest.raises(ArtifactError, match="describes 4000000 parameters"):
        store.publish_base(base_folder(tmp_path / "base", vocab_size=10**6), {})


@pytest.mark.parametrize("norms", [[1.0], {"layer": "1"}, {"layer": -1.0}])
def test_norms_that_are_no_numbers_are_refused(tmp_path: Path, norms: Any) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    with pytest.raises(ArtifactError, match="norms are no numbers"):
        store.publish_base(base_folder(tmp_path / "base"), {contents.NORMS: norms})


def test_a_base_lists_as_many_modules_as_a_config_may_ask_for_and_no_more() -> None:
    def listed(count: int) -> dict[str, Any]:
        return {"modules": {f"layer.{i}": [1, 1] for i in range(count)}}

    assert len(Dimensions.listed(listed(70_000)).modules) == 70_000
    with pytest.raises(ArtifactError, match="lists 70001 modules"):
        Dimensions.listed(listed(70_001))


def test_a_folder_under_another_name_than_its_manifests_is_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    made = store.publish_base(base_folder(tmp_path / "base"), {})
    made.path.rename(made.path.parent / BASE_ID)
    with pytest.raises(ArtifactError, match="its name is not that of its manifest"):
        store.open_base(BASE_ID, made.digest)


# --- a folder of artifacts ---


def test_an_artifact_is_as_old_as_its_manifest_and_one_without_as_what_was_written_last(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    made = store.publish_base(base_folder(tmp_path / "base"), {})
    sizes = manifest.list_files(made.path)
    os.utime(made.path / manifest.MANIFEST, (50, 50))
    assert store.measure(BASES, made.id) == (sum(sizes.values()), datetime.fromtimestamp(50, UTC))
    (made.path / manifest.MANIFEST).unlink()
    for path in (made.path, *made.path.rglob("*")):
        os.utime(path, (60, 60))
    os.utime(made.path / "codec" / "codec.json", (70, 70))
    assert store.measure(BASES, made.id)[1] == datetime.fromtimestamp(70, UTC)
    assert store.names(BASES) == [made.id]
    store.remove(BASES, made.id)
    assert store.names(BASES) == []
    with pytest.raises(ArtifactMissing):
        store.measure(BASES, made.id)


def test_what_killed_publishers_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    made = store.publish_base(base_folder(tmp_path / "base"), {})
    left = made.path.parent / ".staging-1"
    left.mkdir()
    os.utime(left, (50, 50))
    assert store.remove_staging(datetime.fromtimestamp(50, UTC)) == 0
    assert store.remove_staging(datetime.fromtimestamp(51, UTC)) == 1
    assert [path.name for path in made.path.parent.iterdir()] == [made.id]


def test_a_file_in_place_of_the_folder_of_artifacts_is_named(tmp_path: Path) -> None:
    (tmp_path / "artifacts").touch()
    with pytest.raises(ArtifactError, match="artifacts is not a folder; set ADAPTIDE_ARTIFACTS_URL"):
        ArtifactStore(tmp_path / "artifacts").check()


@linux
def test_a_folder_that_takes_nothing_is_told_to_who_would_write(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    store.check(write=True)  # it is made when it is needed
    store.root.mkdir(mode=0o500)
    by_anybody(store.check)
    with pytest.raises(ArtifactError, match="give this user the right, or set ADAPTIDE_ARTIFACTS_URL"):
        by_anybody(lambda: store.check(write=True))


def test_what_changes_while_it_is_published_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"abc")
    described = Manifest(Kind.ADAPTER, {"a": FileEntry(HASH, 3)}, {})
    target = tmp_path / "artifacts" / "adapters" / "x"
    assert publish_to_folder(target, tmp_path / "source", described, None)
    assert not publish_to_folder(target, tmp_path / "source", described, None)
    (tmp_path / "source" / "a").write_bytes(b"abd")
    with pytest.raises(ArtifactError, match="a changed while it was being published"):
        publish_to_folder(target.with_name("y"), tmp_path / "source", described, None)
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_a_published_name_with_another_manifest_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    target = tmp_path / "artifacts" / "adapters" / "x"
    publish_to_folder(target, tmp_path / "source", Manifest(Kind.ADAPTER, {}, {}), None)
    check_same(target, Manifest(Kind.ADAPTER, {}, {}), None)
    with pytest.raises(ArtifactError, match="already published with other content"):
        check_same(target, Manifest(Kind.ADAPTER, {}, {"x": 1}), None)


def test_a_signature_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="its signature could not be written: No such file"):
        write_signature(tmp_path / "nowhere" / "x", b"{}")
