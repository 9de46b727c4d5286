"""What may be inside a base or an adapter: the names, the formats, and nothing that is or can carry code."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.adapters import manifest as manifests
from service.adapters.lora import ADAPTED_LAYERS, Dimensions, check_config, read_weights
from service.adapters.manifest import MANIFEST, Kind, Manifest
from service.adapters.tensors import TensorInfo, decode_float32, header_length, is_finite, parse_header, read_all
from service.errors import ArtifactError

BASE_ID = re.compile(r"b-[0-9a-f]{16}")
VERSION = re.compile(r"a[0-9]{6,9}-[0-9a-f]{12}")
MODEL_CONFIG = "model/config.json"
MODEL_LAYERS = f"model/{ADAPTED_LAYERS}"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
METHOD_STATE = "method_state.safetensors"
"""What a continual method keeps beside its adapter for the next window; no engine loads it."""
_ADAPTER_FILES = {ADAPTER_CONFIG, ADAPTER_WEIGHTS}

# Tokenizers need a few text files; everything else that is code or can carry code stays out.
_BASE_FILE = re.compile(r"(model|codec)/[A-Za-z0-9][A-Za-z0-9_.-]{0,120}\.(safetensors|json)|model/(merges|vocab)\.txt")
_MAX_BASE_BYTES = 256 * 2**30
MAX_TEXT_BYTES = 64 * 2**20  # Llama's tokenizer.json is 17 MB
_MAX_ADAPTER_BYTES = 2 * 2**30
_MAX_STATE_BYTES = 8 * 2**30  # a cumulative method keeps every past adapter
_STATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/]{0,199}")
_MAX_CONFIG_BYTES = 64 * 2**10
_CHUNK = 2**24  # a multiple of every item size


def describe(source: Path, kind: Kind, metadata: Mapping[str, Any]) -> Manifest:
    """The manifest of an unpublished folder. Raises ArtifactError for a file that may not be in one."""
    files = {}
    for name in sorted(manifests.list_files(source)):
        check_name(name, kind)
        files[name] = manifests.hash_plain(source / name)
    manifest = Manifest(kind, files, dict(metadata))
    try:
        encoded = manifest.encode()
    except TypeError as error:
        raise ArtifactError(f"its metadata is not JSON: {error}") from error
    if len(encoded) > manifests.MAX_MANIFEST_BYTES:
        raise ArtifactError("its metadata is too large")
    return manifests.decode_manifest(encoded, kind)


def check_name(name: str, kind: Kind) -> None:
    allowed = _BASE_FILE.fullmatch(name) if kind is Kind.BASE else name in _ADAPTER_FILES | {METHOD_STATE}
    if not allowed:
        wanted = (
            "safetensors and json in model/ and codec/"
            if kind is Kind.BASE
            else f"{ADAPTER_CONFIG}, {ADAPTER_WEIGHTS} and {METHOD_STATE}"
        )
        raise ArtifactError(f"file {name!r} may not be in it; only {wanted}")


def check_listing(path: Path, manifest: Manifest) -> None:
    """Raises ArtifactError unless the folder holds exactly the files of its manifest, by name and size."""
    found = manifests.list_files(path)
    found.pop(MANIFEST, None)
    check_sizes(found, manifest)


def check_sizes(found: Mapping[str, int], manifest: Manifest) -> None:
    """Raises ArtifactError unless `found` (name -> bytes, without the manifest) is what the manifest lists."""
    for name in manifest.files:
        check_name(name, manifest.kind)
    if unlisted := sorted(found.keys() - manifest.files.keys()):
        raise ArtifactError(f"file {unlisted[0]!r} is not in its manifest")
    if missing := sorted(manifest.files.keys() - found.keys()):
        raise ArtifactError(f"file {missing[0]!r} is missing")
    for name, entry in manifest.files.items():
        if found[name] != entry.size:
            raise ArtifactError(f"{name} is {found[name]} bytes, the manifest says {entry.size}")


def read_listed(path: Path, manifest: Manifest, name: str, limit: int) -> bytes:
    """The bytes of one file, after their hash was compared."""
    data = manifests.read_plain(path / name, limit)
    if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
        raise ArtifactError(f"{name} is not what the manifest's sha256 says")
    return data


def json_object(name: str, data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ArtifactError(f"{name} is not JSON") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{name} is not a JSON object")
    return value


def named_base(manifest: Manifest) -> str:
    base_id = manifest.metadata.get("base_id")
    if not isinstance(base_id, str) or not BASE_ID.fullmatch(base_id):
        raise ArtifactError("its metadata names no base_id")
    return base_id


def adapter_parts(
    path: Path, manifest: Manifest, base_id: str, dimensions: Dimensions
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    if set(manifest.files) - {METHOD_STATE} != _ADAPTER_FILES:
        raise ArtifactError(f"it needs {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    config = check_config(
        json_object(ADAPTER_CONFIG, read_listed(path, manifest, ADAPTER_CONFIG, _MAX_CONFIG_BYTES)),
        base_id,
        dimensions.targets,
        transposed=dimensions.transposed,
    )
    if METHOD_STATE in manifest.files:  # its bytes alone: what is in it was checked when it was published
        manifests.check_entry(path / METHOD_STATE, manifest.files[METHOD_STATE])
    return config, read_weights(read_listed(path, manifest, ADAPTER_WEIGHTS, _MAX_ADAPTER_BYTES), config, dimensions)


def state_tensors(path: Path, manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """The method's state by name, float32; empty for an adapter without one. Raises ArtifactError."""
    if METHOD_STATE not in manifest.files:
        return {}
    data = read_listed(path, manifest, METHOD_STATE, _MAX_STATE_BYTES)
    tensors = {}
    for name, info in read_all(data).items():
        if not _STATE_NAME.fullmatch(name):
            raise ArtifactError(f"{METHOD_STATE}: tensor {name[:120]!r} is no name that a method gives")
        if not is_finite(info.dtype, data[info.start : info.end]):
            raise ArtifactError(f"{METHOD_STATE}: tensor {name!r} holds numbers that are not finite")
        tensors[name] = decode_float32(info, data)
    return tensors


def check_base_files(path: Path, manifest: Manifest) -> Dimensions:
    """Raises ArtifactError unless json is json, safetensors is safetensors and the model runs no code of its own."""
    if MODEL_CONFIG not in manifest.files or not any(
        n.startswith("model/") and n.endswith(".safetensors") for n in manifest.files
    ):
        raise ArtifactError(f"it needs {MODEL_CONFIG} and weights in model/*.safetensors")
    if sum(entry.size for entry in manifest.files.values()) > _MAX_BASE_BYTES:
        raise ArtifactError("it is too large")
    for name in manifest.files:
        if name.endswith(".safetensors"):
            read_header(path / name)
        elif name.endswith(".json"):
            value = json_object(name, read_listed(path, manifest, name, MAX_TEXT_BYTES))
            if "auto_map" in value:
                raise ArtifactError(
                    f"{name} asks for code of its own (auto_map); only built-in architectures are served"
                )
    return read_dimensions(path, manifest)


def read_dimensions(path: Path, manifest: Manifest) -> Dimensions:
    """As dimensions_of, for a base in a folder."""
    return dimensions_of(manifest, lambda name: read_listed(path, manifest, name, MAX_TEXT_BYTES))


def dimensions_of(manifest: Manifest, read: Callable[[str], bytes]) -> Dimensions:
    """What the base says of its adapted layers; without that, a Llama's by its config. Raises ArtifactError.

    read: a listed file, checked against the manifest.
    """
    if MODEL_CONFIG not in manifest.files:
        raise ArtifactError(f"it has no {MODEL_CONFIG}")
    name, parse = (MODEL_LAYERS, Dimensions.listed) if MODEL_LAYERS in manifest.files else (MODEL_CONFIG, Dimensions.of)
    return parse(json_object(name, read(name)))


def read_header(path: Path) -> dict[str, TensorInfo]:
    with manifests.open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            length = header_length(file.read(8), size)
            return parse_header(file.read(length), size)
        except ArtifactError as error:
            raise ArtifactError(f"{path.name}: {error.detail}") from error


def check_base_weights(source: Path, manifest: Manifest) -> None:
    """Raises ArtifactError for weights that are not finite. Asked once, when publishing; then the hash vouches."""
    for name in manifest.files:
        if not name.endswith(".safetensors"):
            continue
        tensors = read_header(source / name)
        with manifests.open_plain(source / name) as file:
            for tensor, info in tensors.items():
                file.seek(info.start)
                left = info.end - info.start
                while left:
                    piece = file.read(min(_CHUNK, left))
                    if not piece or not is_finite(info.dtype, piece):
                        raise ArtifactError(
                            f"{name}: tensor {tensor!r} holds numbers that are not finite; the training run diverged"
                        )
                    left -= len(piece)
