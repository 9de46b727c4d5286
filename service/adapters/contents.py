"""What may be inside a base or an adapter: the names, the formats, and nothing that is or can carry code."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.adapters import manifest as manifests
from service.adapters.base_files import MODEL_CONFIG, check_text, is_base_file
from service.adapters.lora import ADAPTED_LAYERS, Dimensions, check_config, most_bytes, read_weights
from service.adapters.manifest import MANIFEST, Kind, Manifest
from service.adapters.signatures import SIGNATURE
from service.adapters.tensors import (
    TensorInfo,
    decode_float32,
    header_length,
    is_finite,
    parse_header,
    read_all,
    sum_of_squares,
    unique_names,
)
from service.errors import ArtifactError

BASE_ID = re.compile(r"b-[0-9a-f]{16}")
VERSION = re.compile(r"a[0-9]{6,9}-[0-9a-f]{12}")
MODEL_LAYERS = f"model/{ADAPTED_LAYERS}"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
METHOD_STATE = "method_state.safetensors"
"""What a continual method keeps beside its adapter for the next window; no engine loads it."""
_ADAPTER_FILES = {ADAPTER_CONFIG, ADAPTER_WEIGHTS}

_MAX_BASE_BYTES = 256 * 2**30
MAX_TEXT_BYTES = 64 * 2**20  # Llama's tokenizer.json is 17 MB
_MAX_ADAPTER_BYTES = 2 * 2**30
_MAX_STATE_BYTES = 8 * 2**30  # a cumulative method keeps every past adapter
NORMS = "norms"
"""In a base's metadata: module -> Frobenius norm of the weight that adapters adapt, measured when it was published."""
_STATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/]{0,199}")
_MAX_CONFIG_BYTES = 64 * 2**10
_MOST_BYTES = {ADAPTER_CONFIG: _MAX_CONFIG_BYTES, ADAPTER_WEIGHTS: _MAX_ADAPTER_BYTES, METHOD_STATE: _MAX_STATE_BYTES}
_CHUNK = 2**24  # a multiple of every item size


def describe(source: Path, kind: Kind, metadata: Mapping[str, Any]) -> Manifest:
    """The manifest of an unpublished folder. Raises ArtifactError for a file that may not be in one."""
    files = {}
    found = manifests.list_files(source)
    check_caps(found, kind)  # before a byte is read
    for name in sorted(found):
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
    allowed = is_base_file(name) if kind is Kind.BASE else name in _MOST_BYTES
    if not allowed:
        wanted = (
            "a model's and a codec's safetensors and json, as `adaptide base build` names them,"
            if kind is Kind.BASE
            else f"{ADAPTER_CONFIG}, {ADAPTER_WEIGHTS} and {METHOD_STATE}"
        )
        raise ArtifactError(f"file {name[:200]!r} may not be in it; only {wanted}")


def check_caps(sizes: Mapping[str, int], kind: Kind) -> None:
    """Raises ArtifactError for a name that may not be there, and for more bytes than such a file ever has."""
    for name, size in sizes.items():
        check_name(name, kind)
        whole = name.endswith(".safetensors") and kind is Kind.BASE
        most = _MAX_BASE_BYTES if whole else _MOST_BYTES.get(name, MAX_TEXT_BYTES)
        if not 0 <= size <= most:
            raise ArtifactError(f"{name} is {size} bytes; at most {most} are read")
    if sum(sizes.values()) > _MAX_BASE_BYTES:
        raise ArtifactError(f"it is larger than {_MAX_BASE_BYTES} bytes")


def check_listing(path: Path, manifest: Manifest) -> None:
    """Raises ArtifactError unless the folder holds exactly the files of its manifest, by name and size."""
    found = manifests.list_files(path)
    for beside in (MANIFEST, SIGNATURE):
        found.pop(beside, None)
    check_sizes(found, manifest)


def check_sizes(found: Mapping[str, int], manifest: Manifest) -> None:
    """Raises ArtifactError unless `found` (name -> bytes, without the manifest) is what the manifest lists."""
    check_caps({name: entry.size for name, entry in manifest.files.items()}, manifest.kind)
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
    """Raises ArtifactError for anything else, and for a name that occurs twice: readers differ in which they take."""
    try:
        orjson.loads(data)  # quick, and stricter: no NaN, nothing a thousand deep
        value = json.loads(data, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is not JSON that can be read: {str(error)[:200]}") from error
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
    limit = min(_MAX_ADAPTER_BYTES, most_bytes(config, dimensions))
    if manifest.files[ADAPTER_WEIGHTS].size > limit:
        raise ArtifactError(f"{ADAPTER_WEIGHTS} is larger than {limit} bytes, which the base's layers do not need")
    if METHOD_STATE in manifest.files:  # its bytes alone: what is in it was checked when it was published
        manifests.check_entry(path / METHOD_STATE, manifest.files[METHOD_STATE])
    return config, read_weights(read_listed(path, manifest, ADAPTER_WEIGHTS, limit), config, dimensions)


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
    for name in manifest.files:
        if name.endswith(".safetensors"):
            read_header(path / name)
        elif name.endswith(".json"):
            check_text(name, json_object(name, read_listed(path, manifest, name, MAX_TEXT_BYTES)), manifest.files)
    dimensions = read_dimensions(path, manifest)
    check_proportions(path, manifest, dimensions)
    return dimensions


def check_proportions(path: Path, manifest: Manifest, dimensions: Dimensions) -> None:
    """Raises ArtifactError when the config makes the model larger than its weights are: a loader would allocate it."""
    config = json_object(MODEL_CONFIG, read_listed(path, manifest, MODEL_CONFIG, MAX_TEXT_BYTES))
    sizes = [config.get(name) for name in ("vocab_size", "hidden_size")]
    rows, columns = (size if isinstance(size, int) else 0 for size in sizes)
    implied = max(rows * columns, sum(a * b for a, b in dimensions.modules.values()))
    held = sum(entry.size for name, entry in manifest.files.items() if name.endswith(".safetensors"))
    if implied > held:  # a parameter takes a byte at the least
        raise ArtifactError(f"its config describes {implied} parameters or more, its weights are {held} bytes")


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
    return replace(parse(json_object(name, read(name))), norms=norms_of(manifest))


def read_header(path: Path) -> dict[str, TensorInfo]:
    with manifests.open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            length = header_length(file.read(8), size)
            return parse_header(file.read(length), size)
        except ArtifactError as error:
            raise ArtifactError(f"{path.name}: {error.detail}") from error


def check_base_weights(source: Path, manifest: Manifest, dimensions: Dimensions) -> dict[str, float]:
    """Raises ArtifactError for weights that are not finite. Asked once, when publishing; then the hash vouches.

    Returns the Frobenius norm of every weight that adapters adapt, by its module; of those that are there by that name.
    """
    squares: dict[str, float] = {}
    for name in manifest.files:
        if not name.endswith(".safetensors"):
            continue
        tensors = read_header(source / name)
        with manifests.open_plain(source / name) as file:
            for tensor, info in tensors.items():
                module = tensor.removesuffix(".weight")
                measured = name.startswith("model/") and module in dimensions.modules and tensor.endswith(".weight")
                file.seek(info.start)
                left = info.end - info.start
                while left:
                    piece = file.read(min(_CHUNK, left))
                    if not piece or not is_finite(info.dtype, piece):
                        raise ArtifactError(
                            f"{name}: tensor {tensor!r} holds numbers that are not finite; the training run diverged"
                        )
                    left -= len(piece)
                    if measured and (more := sum_of_squares(info.dtype, piece)) is not None:
                        squares[module] = squares.get(module, 0.0) + more
    # Four digits: the same weights have the same norms, whatever machine adds them up.
    return {module: float(f"{math.sqrt(total):.4g}") for module, total in sorted(squares.items())}


def norms_of(manifest: Manifest) -> dict[str, float]:
    """What a base's manifest says its adapted weights' norms are; nothing for one that was published without."""
    found = manifest.metadata.get(NORMS, {})
    if not isinstance(found, dict) or not all(isinstance(norm, int | float) and norm >= 0 for norm in found.values()):
        raise ArtifactError(f"its manifest's {NORMS} are no numbers")
    return {module: float(norm) for module, norm in found.items()}
