"""The safetensors format, read by hand: nothing is trusted before it is checked, nothing is executed, NumPy only.

Layout: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import ArtifactError

_MAX_COUNT = 2**48  # of numbers in a tensor, an empty side counted as one (NumPy has no [0, 2**70]), and of bytes
MAX_HEADER_BYTES = 16 * 2**20  # a 70B model's header is under 200 KiB; the format itself allows 100 MB
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}
# Bits of the exponent; all of them set means infinite or not a number.
_EXPONENT: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies; `start` and `end` are bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_length(prefix: bytes, file_bytes: int) -> int:
    """Bytes of the header of a file of `file_bytes` that begins with `prefix` (8 bytes). Raises ArtifactError."""
    if len(prefix) < 8:
        raise ArtifactError("it is shorter than a safetensors file can be")
    length = int.from_bytes(prefix[:8], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, file_bytes - 8):
        raise ArtifactError(f"it is no safetensors file: the header would be {length} bytes")
    return length


def parse_header(header: bytes, file_bytes: int) -> dict[str, TensorInfo]:
    """The tensors that `header` describes, which must cover the data exactly, without overlap or hole.

    Raises ArtifactError saying what is wrong.
    """
    try:
        entries = json.loads(header.decode(), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"its safetensors header cannot be read: {error}") from error
    if not isinstance(entries, dict):
        raise ArtifactError("its safetensors header is not an object")
    notes = entries.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise ArtifactError("its safetensors metadata is not a map of strings")
    data_start = 8 + len(header)
    tensors = {name: _tensor_info(name, entry, data_start) for name, entry in entries.items()}
    end = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.start != end:
            raise ArtifactError("its tensors overlap or leave bytes between them")
        end = info.end
    if end != file_bytes:
        raise ArtifactError(f"its tensors end at byte {end} of {file_bytes}")
    return tensors


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json's object_pairs_hook. Raises ValueError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _tensor_info(name: str, entry: object, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ArtifactError(f"tensor {name!r} has dtype {dtype!r}, which is not supported")
    if (
        not _counts(shape)
        or len(shape) > 8
        or math.prod(size or 1 for size in shape) > _MAX_COUNT
        or not _counts(offsets)
        or len(offsets) != 2
        or max(offsets) > _MAX_COUNT
    ):
        raise ArtifactError(f"tensor {name!r} has an impossible shape or place")
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:  # Python integers: nothing overflows
        raise ArtifactError(f"tensor {name!r} is {end - start} bytes, its shape {shape} needs another number")
    return TensorInfo(dtype, tuple(shape), data_start + start, data_start + end)


def _counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def is_finite(dtype: str, data: bytes | memoryview) -> bool:
    """Whether every number in `data` is finite; integers always are."""
    if dtype not in _EXPONENT:
        return True
    word, exponent = _EXPONENT[dtype]
    bits = np.frombuffer(data, dtype=word)
    return not bool(np.any((bits & exponent) == exponent))


def sum_of_squares(dtype: str, data: bytes) -> float | None:
    """Of the numbers in `data`, None for a dtype that is no adapter's."""
    values = _float32(dtype, data)
    return None if values is None else float(np.dot(values64 := values.astype(np.float64), values64))


def decode_float32(info: TensorInfo, data: bytes) -> NDArray[np.float32]:
    """float32 [shape] of a tensor of the file `data`. Raises ArtifactError for a dtype other than F32, F16, BF16."""
    values = _float32(info.dtype, memoryview(data)[info.start : info.end])
    if values is None:
        raise ArtifactError(f"adapter weights are F32, F16 or BF16, not {info.dtype}")
    return values.reshape(info.shape)


def _float32(dtype: str, raw: bytes | memoryview) -> NDArray[np.float32] | None:
    if dtype == "F32":
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)
    if dtype == "F16":
        return np.frombuffer(raw, dtype="<f2").astype(np.float32)
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return None


def read_all(data: bytes) -> dict[str, TensorInfo]:
    """The tensors of a whole safetensors file held in memory. Raises ArtifactError."""
    length = header_length(data[:8], len(data))
    return parse_header(data[8 : 8 + length], len(data))
