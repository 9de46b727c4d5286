"""What a plain LoRA for one base must look like: its configuration, names, shapes and the size of its numbers."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.adapters.tensors import MAX_HEADER_BYTES, decode_float32, is_finite, read_all
from service.errors import ArtifactError

PROJECTIONS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}
MAX_RANK = 1024  # cumulative methods export stacked ranks
MAX_SCALE = 64.0  # alpha / r; the paper's is 2
# Frobenius norm of one tensor. PEFT initialises A to about sqrt(r / 3): 1.6 at rank 8, 18 at rank 1024.
MAX_NORM = 1_000.0
MAX_UPDATE = 32.0
"""Frobenius norm of scale * B A, in norms of the weight that it is added to (measured in docs/decisions/0027)."""

ADAPTED_LAYERS = "adapted_layers.json"
"""Beside a base's model whose adapters adapt other layers than a Llama's seven projections: which, and their sizes."""
MOST_LAYERS = 10_000
PEFT_PREFIX = "base_model.model."

_MODULE = re.compile(r"[A-Za-z_]\w{0,63}(\.\w{1,64}){0,15}", re.ASCII)
_NAME = re.compile(
    r"base_model\.model\.[A-Za-z_]\w{0,63}(\.([A-Za-z_]\w{0,63}|0|[1-9]\d{0,4})){0,15}\.lora_[AB]\.weight"
)

# Keys of PEFT's LoraConfig that say nothing about what is computed at inference.
_FREE = {"peft_version", "lora_dropout", "inference_mode", "qalora_group_size"}
# Keys that PEFT acts on when it loads: an initialisation such as pissa rewrites the base's weights, a core is imported.
_FIXED: dict[str, tuple[object, ...]] = {
    "init_lora_weights": (None, True, False, "gaussian"),
    "megatron_core": (None, "megatron.core"),
}
_INERT: tuple[object, ...] = (None, False, "", [], {})
_READ = {"peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules", "bias"}


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The layers of a base that its adapters adapt: name of the module -> (rows, columns), by the base's own names.

    transposed: the base stores their weights as [columns, rows] (GPT-2), which PEFT calls fan_in_fan_out. An adapter's
    tensors are the same either way. norms: Frobenius norms of their weights, where the base's manifest gives them.
    """

    modules: Mapping[str, tuple[int, int]]
    transposed: bool = False
    norms: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Dimensions":
        """The seven projections of a Llama's blocks, from its config.json.

        Raises ArtifactError when a size is missing or no count.
        """

        def count(name: str, default: int | None = None) -> int:
            value = config.get(name)
            return _size(f"the base's config.json gives {name}", default if value is None else value)

        hidden, heads = count("hidden_size"), count("num_attention_heads")
        head = count("head_dim", hidden // heads)
        together = "the base's config.json gives heads times head_dim"
        attention = _size(together, heads * head)
        key_value = _size(together, count("num_key_value_heads", heads) * head)
        intermediate = count("intermediate_size")
        shapes = {
            "q_proj": (attention, hidden),
            "k_proj": (key_value, hidden),
            "v_proj": (key_value, hidden),
            "o_proj": (hidden, attention),
            "gate_proj": (intermediate, hidden),
            "up_proj": (intermediate, hidden),
            "down_proj": (hidden, intermediate),
        }
        layers = count("num_hidden_layers")
        if layers > MOST_LAYERS:
            raise ArtifactError(f"the base's config.json gives num_hidden_layers = {layers}, which no model has")
        modules = [(f"model.layers.{i}.{PROJECTIONS[name]}.{name}", name) for i in range(layers) for name in shapes]
        return cls({module: shapes[name] for module, name in modules})

    @classmethod
    def listed(cls, value: Mapping[str, Any]) -> "Dimensions":
        """What a base says itself, in the file ADAPTED_LAYERS. Raises ArtifactError for anything else."""
        found, transposed = value.get("modules"), value.get("transposed", False)
        if not isinstance(found, dict) or not found or type(transposed) is not bool:
            raise ArtifactError(f"{ADAPTED_LAYERS} lists no modules; build the base again")
        if len(found) > MOST_LAYERS * len(PROJECTIONS):  # as many as a config.json may ask for
            raise ArtifactError(f"{ADAPTED_LAYERS} lists {len(found)} modules, which no model has")
        modules = {}
        for name, shape in found.items():
            if not _MODULE.fullmatch(name) or not isinstance(shape, list) or len(shape) != 2:
                raise ArtifactError(f"{ADAPTED_LAYERS}: {name[:120]!r} is no module with two sizes")
            rows, columns = (_size(f"{ADAPTED_LAYERS} gives {name}", size) for size in shape)
            modules[name] = (rows, columns)
        return cls(modules, transposed)

    def as_json(self) -> dict[str, Any]:
        """What `listed` reads."""
        return {"modules": {name: list(shape) for name, shape in self.modules.items()}, "transposed": self.transposed}

    @property
    def targets(self) -> tuple[str, ...]:
        """The last parts of the modules' names, as PEFT's target_modules lists them."""
        return tuple(dict.fromkeys(name.rpartition(".")[2] for name in self.modules))

    def of_projection(self, projection: str) -> tuple[int, int]:
        """(rows, columns) of the first module of that last name."""
        return next(shape for name, shape in self.modules.items() if name.rpartition(".")[2] == projection)


def _size(what: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= 2**24:
        raise ArtifactError(f"{what} = {value!r}, which is no size; build the base again")
    return value


def check_config(
    config: object, base_id: str, targets: Collection[str] = tuple(PROJECTIONS), *, transposed: bool = False
) -> dict[str, Any]:
    """`config` itself when it describes a plain LoRA for `base_id` (or names no base). Raises ArtifactError.

    targets, transposed: of the base's Dimensions.

    A key that is not known must be null, false or empty: what a later PEFT adds is refused once it is switched on.
    """
    if not isinstance(config, dict):
        raise ArtifactError("adapter_config.json is not an object")
    for key, value in config.items():
        if key == "fan_in_fan_out" and transposed and value is True:
            continue
        if key not in _READ | _FREE and value not in _FIXED.get(key, _INERT):
            raise ArtifactError(
                f"adapter_config.json sets {key}, which is no plain LoRA; export the adapter without it"
            )
    if config.get("peft_type") != "LORA":
        raise ArtifactError(f"adapter_config.json has peft_type {config.get('peft_type')!r}; only LORA is served")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise ArtifactError(f"adapter_config.json has task_type {config.get('task_type')!r}; CAUSAL_LM is expected")
    if config.get("bias", "none") != "none":
        raise ArtifactError("adapter_config.json trains biases; only bias none is served")
    if config.get("base_model_name_or_path") not in (None, base_id):
        raise ArtifactError(f"adapter_config.json names another base model; write null or {base_id!r}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise ArtifactError(f"adapter_config.json has r {rank!r}; 1 to {MAX_RANK} are served")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha / rank <= MAX_SCALE:
        raise ArtifactError(
            f"adapter_config.json has lora_alpha {alpha!r}; above 0 and at most {MAX_SCALE:g} times r are served"
        )
    named = config.get("target_modules")
    if not isinstance(named, list) or not named or not all(isinstance(t, str) and t in targets for t in named):
        raise ArtifactError(f"adapter_config.json must list target_modules among {', '.join(targets)}")
    if len(set(named)) != len(named):
        raise ArtifactError("adapter_config.json lists a target module twice")
    return config


def read_weights(data: bytes, config: dict[str, Any], dimensions: Dimensions) -> dict[str, NDArray[np.float32]]:
    """PEFT name -> float32 A [r, columns] or B [rows, r], for every target module of every layer and nothing else.

    data: a whole safetensors file; config: what check_config returned. Raises ArtifactError.
    """
    rank, tensors = config["r"], read_all(data)
    wanted = expected_shapes(config["target_modules"], rank, dimensions)
    for name in tensors:
        if name not in wanted:
            known = (
                "a layer or module that the base or target_modules does not have"
                if _NAME.fullmatch(name)
                else "no LoRA tensor"
            )
            raise ArtifactError(f"tensor {name[:120]!r} is {known}")
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ArtifactError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    weights = {}
    for name, info in tensors.items():
        if info.shape != wanted[name]:
            raise ArtifactError(f"tensor {name!r} has shape {list(info.shape)}, the base needs {list(wanted[name])}")
        if not is_finite(info.dtype, data[info.start : info.end]):
            raise ArtifactError(f"tensor {name!r} holds numbers that are not finite; the training run diverged")
        weights[name] = decode_float32(info, data)
        norm = float(np.linalg.norm(weights[name].astype(np.float64)))
        if norm > MAX_NORM:
            raise ArtifactError(f"tensor {name!r} has norm {norm:.3g}, above {MAX_NORM:g}; the training run diverged")
    check_update(weights, config["lora_alpha"] / rank, dimensions)
    return weights


def check_update(weights: Mapping[str, NDArray[np.float32]], scale: float, dimensions: Dimensions) -> None:
    """Raises ArtifactError when scale * B A would swamp a weight of the base, so that it alone is what serves."""
    for module, norm in dimensions.norms.items():
        pair = [weights.get(f"{PEFT_PREFIX}{module}.lora_{side}.weight") for side in "AB"]
        if norm and pair[0] is not None and pair[1] is not None:
            ratio = scale * product_norm(pair[0], pair[1]) / norm
            if ratio > MAX_UPDATE:
                raise ArtifactError(
                    f"its update of {module} is {ratio:.3g} times the base's weight in norm, above {MAX_UPDATE:g}; the "
                    "training run diverged"
                )


def product_norm(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Frobenius norm of B A [rows, columns], which is not formed: tr(B'B AA'), two products of rank x rank."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    return float(np.sqrt(max(0.0, np.sum((b64.T @ b64) * (a64 @ a64.T)))))


def most_bytes(config: dict[str, Any], dimensions: Dimensions) -> int:
    """Of a file of safetensors with such an adapter in it."""
    shapes = expected_shapes(config["target_modules"], config["r"], dimensions)
    return MAX_HEADER_BYTES + 8 + sum(4 * rows * columns for rows, columns in shapes.values())


def expected_shapes(targets: list[str], rank: int, dimensions: Dimensions) -> dict[str, tuple[int, int]]:
    """PEFT name -> shape of every tensor of a LoRA of `rank` on `targets`."""
    shapes = {}
    for module, (rows, columns) in dimensions.modules.items():
        if module.rpartition(".")[2] in targets:
            shapes[f"{PEFT_PREFIX}{module}.lora_A.weight"] = (rank, columns)
            shapes[f"{PEFT_PREFIX}{module}.lora_B.weight"] = (rows, rank)
    return shapes
