"""Whatever bytes lie where an artifact should be: they are refused as an artifact, and nothing is left behind."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save

from service.adapters import contents
from service.adapters.artifacts import ArtifactStore, Published
from service.adapters.lora import Dimensions, check_config, expected_shapes, read_weights
from service.adapters.manifest import FileEntry, Kind, Manifest, decode_manifest
from service.adapters.tensors import ITEM_BYTES, decode_float32, header_length, parse_header, read_all
from service.catalog.semantic_ids import load_codec
from service.errors import ArtifactError
from tests.adapters.tiny import CONFIG, MODEL, adapter_folder, adapter_tensors, base_folder
from tests.fuzz.inputs import any_json, any_number, any_text, deep, edited, encodable_json, fuzz, worded

BASE_ID = "b-0123456789abcdef"
WEIGHTS = save(adapter_tensors())
CODEC = (
    b'{"format": 1, "kind": "rqvae", "levels": 4, "codes": 256, "layers": 1, '
    b'"text_encoder": {"kind": "tfidf", "terms": ["a"]}}'
)
MANIFEST = Manifest(Kind.ADAPTER, {"a/b.json": FileEntry("0" * 64, 3)}, {"base_id": BASE_ID}).encode()


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


sizes = st.integers(0, 5) | any_number | st.sampled_from([2**31, 2**62, 2**70, 10**4299])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*ITEM_BYTES, "F8_E4M3", None, 4]) | any_json,
        "shape": st.lists(sizes, max_size=9) | any_json,
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | any_json,
    }
)
headers = st.dictionaries(any_text | st.just("__metadata__"), entries | any_json, max_size=3)


def whole(value: bytes) -> None:
    """What a reader of a file of tensors does, as far as it gets."""
    for info in read_all(value).values():
        assert math.prod(info.shape) * ITEM_BYTES[info.dtype] == info.end - info.start
        assert 0 <= info.start <= info.end <= len(value)
        if info.dtype in ("F32", "F16", "BF16"):
            assert decode_float32(info, value).shape == info.shape


@fuzz(300)
@given(
    st.one_of(
        st.binary(max_size=100),
        edited(save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)})),
        st.builds(safetensors, headers, st.binary(max_size=16)),
    )
)
@example(safetensors({"a": {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 0]}}))
@example(safetensors({"a": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}))
@example(safetensors({"a": {"dtype": "U8", "shape": [10**4300 - 1], "data_offsets": [0, 10**4300 - 1]}}))
@example(safetensors(b'{"a":' + b"[" * 100_000))
@example(safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5_000 + b'],"data_offsets":[0,0]}}'))
@example(safetensors({"\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, b"\0\0\0\0"))
def test_any_file_of_tensors_is_read_exactly_or_refused(data: bytes) -> None:
    try:
        whole(data)
    except ArtifactError as refused:
        worded(refused)


@fuzz(100)
@given(st.binary(max_size=12), st.integers(0, 2**40))
def test_a_header_is_never_longer_than_its_file(prefix: bytes, size: int) -> None:
    try:
        length = header_length(prefix, size)
    except ArtifactError:
        return
    assert 2 <= length <= size - 8


@fuzz(100)
@given(headers.map(json.dumps).map(str.encode), st.integers(0, 200))
def test_tensors_never_reach_beyond_the_file(header: bytes, size: int) -> None:
    try:
        found = parse_header(header, size)
    except ArtifactError:
        return
    assert all(8 + len(header) <= info.start <= info.end <= size for info in found.values())


documents = st.fixed_dictionaries(
    {"format": st.just(1) | any_json, "kind": st.just("adapter") | any_json},
    optional={
        "files": st.dictionaries(
            any_text,
            st.fixed_dictionaries({"sha256": st.just("0" * 64) | any_json, "bytes": any_number | any_json}) | any_json,
            max_size=2,
        )
        | any_json,
        "metadata": st.dictionaries(any_text, any_json, max_size=2) | any_json,
        "more": any_json,
    },
)


@fuzz(300)
@given(documents.map(json.dumps).map(str.encode) | edited(MANIFEST) | st.binary(max_size=60))
@example(b'{"format":1,"kind":"adapter","files":{},"metadata":' + b"[" * 5_000)
@example(b'{"format":1,"kind":"adapter","files":[],"metadata":{}}')
@example(b'{"format":1,"kind":"adapter","files":{"a":{"sha256":null,"bytes":1}},"metadata":{}}')
def test_any_manifest_is_refused_or_means_what_it_says(data: bytes) -> None:
    try:
        manifest = decode_manifest(data, Kind.ADAPTER)
    except ArtifactError as refused:
        worded(refused)
        return
    assert decode_manifest(manifest.encode(), Kind.ADAPTER) == manifest


configs = st.dictionaries(
    st.sampled_from([*CONFIG, "init_lora_weights", "auto_mapping", "fan_in_fan_out"]) | any_text, any_json, max_size=3
).map(lambda changes: CONFIG | changes)
models = st.dictionaries(st.sampled_from([*MODEL, "head_dim"]), sizes | any_json, max_size=3).map(
    lambda changes: MODEL | changes
)
listed = st.fixed_dictionaries(
    {
        "modules": st.dictionaries(any_text | st.just("a.b"), st.lists(sizes, max_size=3) | any_json, max_size=3)
        | any_json
    },
    optional={"transposed": any_json},
)


@fuzz(300)
@given(configs | any_json)
def test_any_configuration_is_a_plain_lora_or_refused(config: object) -> None:
    try:
        accepted = check_config(config, BASE_ID)
    except ArtifactError:
        return
    assert accepted["peft_type"] == "LORA"
    assert 1 <= accepted["r"] <= 1024
    assert set(accepted["target_modules"]) <= set(CONFIG["target_modules"])


@fuzz(300)
@given(st.one_of(models.map(lambda m: (Dimensions.of, m)), listed.map(lambda m: (Dimensions.listed, m))))
@example((Dimensions.of, MODEL | {"num_hidden_layers": 2**24}))
@example((Dimensions.of, MODEL | {"num_hidden_layers": 1_429}))  # of seven modules each
@example((Dimensions.of, MODEL | {"num_attention_heads": 2**24}))
@example((Dimensions.of, MODEL | {"num_attention_heads": 2**20, "head_dim": 2**20}))
@example((Dimensions.of, MODEL | {"num_key_value_heads": 2**20, "head_dim": 2**20}))
def test_any_model_configuration_gives_sizes_that_a_model_can_have_or_is_refused(
    asked: tuple[Callable[[Any], Dimensions], dict[str, Any]],
) -> None:
    parse, value = asked
    try:
        dimensions = parse(value)
    except ArtifactError:
        return
    assert Dimensions.listed(dimensions.as_json()) == dimensions


@fuzz(150)
@given(edited(WEIGHTS, most=2))
def test_weights_that_are_accepted_are_finite_and_of_the_bases_shapes(data: bytes) -> None:
    dimensions = Dimensions.of(MODEL)
    try:
        weights = read_weights(data, CONFIG, dimensions)
    except ArtifactError as refused:
        worded(refused)
        return
    assert {name: array.shape for name, array in weights.items()} == expected_shapes(
        CONFIG["target_modules"], CONFIG["r"], dimensions
    )
    assert all(np.isfinite(array).all() for array in weights.values())


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, Published]:
    folder = tmp_path_factory.mktemp("shelf")
    store = ArtifactStore(folder / "artifacts")
    return store, store.publish_base(base_folder(folder / "base"), {})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@fuzz(60)
@given(
    config=edited(json.dumps(CONFIG).encode(), most=2) | configs.map(json.dumps).map(str.encode),
    weights=edited(WEIGHTS, most=2),
    metadata=encodable_json,
)
def test_an_adapter_is_published_whole_and_opens_or_is_refused_and_leaves_nothing(
    shelf: tuple[ArtifactStore, Published],
    tmp_path_factory: pytest.TempPathFactory,
    config: bytes,
    weights: bytes,
    metadata: Any,
) -> None:
    store, base = shelf
    source = adapter_folder(tmp_path_factory.mktemp("source") / "adapter")
    (source / contents.ADAPTER_CONFIG).write_bytes(config)
    (source / contents.ADAPTER_WEIGHTS).write_bytes(weights)
    before = tree(store.root)
    try:
        published = store.publish_adapter(source, {"base_id": base.id, "free": metadata})
    except ArtifactError:
        assert tree(store.root) == before
        return
    opened = store.verify_adapter(published.id, published.digest, base.id, store.read_dimensions(base.id, base.digest))
    assert opened.metadata == {"base_id": base.id, "free": metadata}
    store.remove("adapters", published.id)
    assert tree(store.root) == before


@fuzz(40)
@given(
    model=edited(json.dumps(MODEL).encode(), most=2) | models.map(json.dumps).map(str.encode),
    weights=edited(WEIGHTS, most=2),
)
def test_a_base_is_published_whole_and_opens_or_is_refused_and_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, model: bytes, weights: bytes
) -> None:
    folder = tmp_path_factory.mktemp("base")
    source, store = base_folder(folder / "source"), ArtifactStore(folder / "artifacts")
    (source / contents.MODEL_CONFIG).write_bytes(model)
    (source / "model" / "more.safetensors").write_bytes(weights)
    try:
        published = store.publish_base(source, {})
    except ArtifactError:
        assert not store.root.exists()
        return
    assert store.open_base(published.id, published.digest).dimensions.modules


@fuzz(60)
@given(
    config=edited(CODEC) | any_json.map(json.dumps).map(str.encode),
    tensors=edited(save({"codebooks": np.zeros((4, 256, 2), np.float32), "text.idf": np.ones(1, np.float32)}), most=2),
)
@example(config=b"[" * 100_000, tensors=b"")
@example(config=json.dumps({"layers": deep(900)}).encode(), tensors=b"")
@example(config=b'{"format": "\xff"}', tensors=b"")
def test_any_codec_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, config: bytes, tensors: bytes) -> None:
    folder = tmp_path_factory.mktemp("codec")
    (folder / "codec.json").write_bytes(config)
    (folder / "codec.safetensors").write_bytes(tensors)
    try:
        load_codec(folder)
    except ArtifactError as refused:
        worded(refused)
