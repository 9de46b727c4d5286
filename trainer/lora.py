"""LoRA on a backbone: layers that compute with W + s B A, and the plain PEFT folder that every engine can load."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from service.adapters.lora import Dimensions
from service.generation.backbone import LINEAR, LORA_PREFIX, Backbone, weight_of
from trainer.dropout import dropout

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Of a Llama. What another model has, `adaptable` finds."""
ADDING = (
    *("o_proj", "down_proj", "out_proj", "c_proj", "fc2", "dense", "dense_4h_to_h"),
    *("fc_out", "wo", "w2"),
)
"""Last names, across architectures, of the layers whose outputs attention and MLP add to the residual stream."""
LoraTensors = Mapping[str, Tensor]  # PEFT name -> lora_A [r, d_in] or lora_B [d_out, r]
Observer = Callable[[str, Tensor], None]  # (module's PEFT name, its inputs [..., d_in], detached)


def names_of(module: str) -> tuple[str, str]:
    """PEFT's names of a module's A and B."""
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def adaptable(model: PreTrainedModel) -> "dict[str, nn.Linear | Conv1D]":
    """The layers that LoRA adapts, by name: every linear layer of every block, wrapped or not.

    Of a mixture of experts those of attention alone: which expert sees a token is not an adapter's to change, and
    experts are no layers of their own.
    """
    found: dict[str, nn.Linear | Conv1D] = {}
    mixture = has_experts(model)
    for block_name, block in blocks(model):
        for name, module in block.named_modules():
            own = module.base if isinstance(module, AdaptedLinear) else module
            if not isinstance(own, LINEAR) or name.endswith(".base") or (mixture and "att" not in name):
                continue
            found[f"{block_name}.{name}"] = own
    return found


def blocks(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The decoder's blocks by name; none where it has no list of as many as its config says."""
    count = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [(f"{name}.{i}", block) for i, block in enumerate(module)]
    return []


def has_experts(model: PreTrainedModel) -> bool:
    """Whether a block is a mixture of experts."""
    named = (own for _, block in blocks(model) for own in block.named_modules())
    return any(word in (name + type(own).__name__).lower() for name, own in named for word in ("expert", "moe"))


def is_transposed(model: PreTrainedModel) -> bool:
    """Whether the adapted layers store their weights as [in, out]."""
    return any(isinstance(layer, Conv1D) for layer in adaptable(model).values())


def dimensions_of(model: PreTrainedModel) -> Dimensions:
    """What an adapter of this model must look like."""
    layers = adaptable(model)
    shapes = {name: tuple(weight_of(layer).shape) for name, layer in layers.items()}
    return Dimensions({name: (rows, columns) for name, (rows, columns) in shapes.items()}, is_transposed(model))


class LoraBackbone:
    """A backbone with LoRA on every linear layer of its blocks; everything else is frozen.

    parameters: PEFT name -> the trainable A and B, float32. A forward pass uses what `compose` gives, A [R, d_in] and
    B [d_out, R] under the same names: the parameters themselves, or what a cumulative method stacks around them.
    """

    def __init__(self, backbone: Backbone, *, rank: int, alpha: float, dropout: float, seed: int) -> None:
        """Fresh: A kaiming, B 0 (it changes nothing). Wraps the model in place; `unwrap` undoes it."""
        self.backbone, self.rank, self.scale = backbone, rank, alpha / rank
        self.parameters: dict[str, nn.Parameter] = {}
        self.layers: dict[str, AdaptedLinear] = {}
        for name, module in adaptable(backbone.model).items():
            rows, columns = weight_of(module).shape
            peft_name = LORA_PREFIX + name
            for own, shape in zip(names_of(peft_name), ((rank, columns), (rows, rank)), strict=True):
                self.parameters[own] = nn.Parameter(torch.zeros(shape, device=module.weight.device))
            self.layers[peft_name] = AdaptedLinear(peft_name, module, self.scale, dropout, self._refresh)
        self.draw(seed)
        self.compose: Callable[[], LoraTensors] = lambda: self.parameters
        self._replace(self.layers)
        self._before = backbone.decoder.register_forward_pre_hook(lambda *_: self._refresh())

    @property
    def modules(self) -> tuple[str, ...]:
        """PEFT names of the adapted modules."""
        return tuple(self.layers)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Begin afresh: A kaiming, B 0."""
        generator = torch.Generator().manual_seed(seed)
        for a, b in (map(self.parameters.__getitem__, names_of(module)) for module in self.layers):
            bound = 1 / math.sqrt(a.shape[1])  # kaiming_uniform with a = sqrt(5), as PEFT initialises A
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            b.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """PEFT name -> a float32 copy of what is in force."""
        return {name: p.detach().float().cpu().clone() for name, p in self.compose().items()}

    @torch.no_grad()
    def load(self, tensors: "Mapping[str, NDArray | Tensor]") -> None:  # type: ignore[type-arg]  # any float
        """Set the trainable A and B. Raises ValueError, with nothing set, when names or shapes are not this model's."""
        own = self.parameters
        if own.keys() != tensors.keys():
            raise ValueError("the adapter adapts other modules than the base has")
        values = {name: torch.as_tensor(tensors[name]) for name in own}
        for name, value in values.items():
            if value.shape != own[name].shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, the base wants {tuple(own[name].shape)}")
        for name, value in values.items():
            own[name].copy_(value)

    def observe(self, observer: Observer | None, *, training_only: bool = False) -> None:
        """Show every adapted layer's inputs to `observer` in the forward passes that follow; None: no longer."""
        for layer in self.layers.values():
            layer.observer, layer.observes_training_only = observer, training_only

    def unwrap(self) -> Backbone:
        """The backbone without LoRA; the adapter is gone from it."""
        self._before.remove()
        self._replace({name: layer.base for name, layer in self.layers.items()})
        return self.backbone

    def _refresh(self) -> None:
        """Let the layers compute with what `compose` gives now."""
        tensors = self.compose()
        for name, layer in self.layers.items():
            a_name, b_name = names_of(name)
            layer.current = (tensors[a_name], tensors[b_name])

    def _replace(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            parent, _, child = name.removeprefix(LORA_PREFIX).rpartition(".")
            setattr(self.backbone.model.get_submodule(parent), child, module)


class AdaptedLinear(nn.Module):
    """x -> x (W + s B A)^T. The A and B of the moment are set from outside and are not its parameters."""

    current: tuple[Tensor, Tensor]  # a tuple, so that torch does not take the tensors for parameters of this module

    def __init__(
        self,
        name: str,
        base: nn.Linear | Conv1D,
        scale: float,
        dropout: float,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        """refresh: sets the A and B of the moment in this and all other layers of the adapter."""
        super().__init__()
        base.requires_grad_(False)
        self.base, self._name, self._scale, self._dropout, self.refresh = base, name, scale, dropout, refresh
        self.observer: Observer | None = None
        self.observes_training_only = False
        self.output_dropout = 0.0
        """On its outputs in training mode, for blocks that are compiled; see trainer.execution."""
        self.train(base.training)  # a new module trains; dropout and observers go by the model's mode

    @property
    def mergeable(self) -> bool:
        """Whether it is a product with `merged` now (and the bias)."""
        return not (self.training and (self._dropout or self.output_dropout)) and not self.is_half

    @property
    def is_half(self) -> bool:
        """Whether the weight is in 16 bits: merged, it would round a change of less than 0.2 % of an entry away."""
        return self.base.weight.element_size() < 4

    @property
    def watched(self) -> bool:
        """Whether an observer wants its inputs now."""
        return self.observer is not None and (self.training or not self.observes_training_only)

    def show(self, x: Tensor) -> None:
        """Give the inputs [.., d_in] to the observer, if it wants them now."""
        if self.observer is not None and self.watched:
            self.observer(self._name, x.detach())

    def merged(self) -> Tensor:
        """W + s B A [out, in], differentiable in A and B."""
        a, b = self.current
        return torch.addmm(weight_of(self.base).to(b.dtype), b, a, alpha=self._scale)

    def forward(self, x: Tensor) -> Tensor:
        return dropout(self._product(x), self.output_dropout, self.training)

    def _product(self, x: Tensor) -> Tensor:
        self.show(x)
        a, b = self.current
        if self.is_half:
            apart: Tensor = self.base(x)
            dropped = nn.functional.dropout(x, self._dropout, self.training) if self._dropout else x
            inner = nn.functional.linear(dropped, a.to(x.dtype))
            return apart + nn.functional.linear(inner, (self._scale * b).to(x.dtype))
        if self.training and self._dropout:
            dropped = nn.functional.dropout(x, self._dropout)
            change = nn.functional.linear(nn.functional.linear(dropped, a), b)
            output: Tensor = self.base(x) + self._scale * change
            return output
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            merged: Tensor = _Merged.apply(x.to(dtype), weight_of(self.base), a, b, self._scale)  # type: ignore[no-untyped-call]  # torch
            return merged if self.base.bias is None else merged + self.base.bias.to(dtype)


def let_go(model: nn.Module) -> None:
    """Free the autograd graph of the last pass, which what a cumulative method composed would keep until the next."""
    for own in model.modules():
        if isinstance(own, AdaptedLinear):
            with torch.no_grad():
                own.refresh()
            return  # it was that of all layers


class _Merged(torch.autograd.Function):
    """One product with the merged weight forward; backward never forms the gradient of W, only of A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        merged = torch.addmm(weight.to(b.dtype), b, a, alpha=scale).to(x.dtype)
        ctx.save_for_backward(x, merged, a, b)
        ctx.scale = scale
        return nn.functional.linear(x, merged)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, merged, a, b = ctx.saved_tensors
        wants_x, _, wants_a, wants_b, _ = ctx.needs_input_grad
        scale = ctx.scale
        flat, inputs = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        of_x = gradient @ merged if wants_x else None
        of_a = scale * ((flat @ b.to(flat.dtype)).T @ inputs).to(a.dtype) if wants_a else None
        of_b = scale * (flat.T @ (inputs @ a.to(flat.dtype).T)).to(b.dtype) if wants_b else None
        return of_x, None, of_a, of_b, None


def save_adapter(
    folder: Path, tensors: LoraTensors, *, scale: float, dropout: float = 0.0, transposed: bool = False
) -> None:
    """Write adapter_config.json and adapter_model.safetensors as PEFT reads them; r is the tensors' own.

    transposed: see is_transposed.
    """
    from peft import LoraConfig  # seconds to import, and only what writes needs it

    rank = rank_of(tensors)
    alpha = scale * rank
    config = LoraConfig(
        r=rank,
        lora_alpha=round(alpha) if float(alpha).is_integer() else alpha,  # type: ignore[arg-type]  # the service reads both
        lora_dropout=dropout,
        target_modules=list({name.split(".lora_")[0].rpartition(".")[2] for name in tensors}),
        fan_in_fan_out=transposed,
        bias="none",
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).to_dict()  # type: ignore[no-untyped-call]  # peft
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order would differ from run to run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def rank_of(tensors: LoraTensors) -> int:
    """R: how many rows every A has."""
    return next(int(tensor.shape[0]) for name, tensor in tensors.items() if ".lora_A." in name)
