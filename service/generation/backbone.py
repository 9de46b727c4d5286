"""The causal LM behind every engine: loaded from a verified folder, LoRA merged into a copy of the adapted weights."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar

from service.adapters.lora import PEFT_PREFIX
from service.catalog.trie import CODES, LEVELS
from service.errors import ArtifactError
from service.generation.loading import one_at_a_time
from service.generation.prompt import COMPACT, Prompt, load_prompt

LORA_PREFIX = PEFT_PREFIX  # PEFT's name for the wrapped model
LINEAR = (nn.Linear, Conv1D)
"""The layers that can be adapted; GPT-2's Conv1D is one whose weight is stored transposed."""


@dataclass(frozen=True, slots=True)
class Readout:
    """What some models do to their head's products before they are logits: cap * tanh(scale * product / cap)."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Readout":
        """Granite divides, Cohere multiplies, Gemma 2 caps. What another model does, trainer.language_check finds."""
        divisor, factor = getattr(config, "logits_scaling", None), getattr(config, "logit_scale", None)
        cap = getattr(config, "final_logit_softcapping", None)
        return cls((factor or 1.0) / (divisor or 1.0), cap or None)

    def __call__(self, products: Tensor) -> Tensor:
        logits = products if self.scale == 1 else products * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal LM and the prompt it was trained with, which says where its semantic-ID tokens lie.

    head: [4, 256, hidden], the output rows of each level's codes. head_bias: [4, 256], None for most models.
    """

    model: PreTrainedModel
    prompt: Prompt = COMPACT

    @property
    def first_code_token(self) -> int:
        return self.prompt.first_code_token

    @property
    def decoder(self) -> nn.Module:
        """The stack without its head: token ids -> last hidden states."""
        return self.model.base_model

    @property
    def head(self) -> Tensor:
        weight: Tensor = self.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]  # transformers
        return weight[self.first_code_token : self.first_code_token + LEVELS * CODES].view(LEVELS, CODES, -1)

    @property
    def head_bias(self) -> Tensor | None:
        bias: Tensor | None = getattr(self.model.get_output_embeddings(), "bias", None)  # type: ignore[no-untyped-call]  # transformers
        span = slice(self.first_code_token, self.first_code_token + LEVELS * CODES)
        return None if bias is None else bias[span].view(LEVELS, CODES)

    @cached_property
    def readout(self) -> Readout:
        return Readout.of(self.model.config)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the longest sequence that the model reads as it was trained; None where it does not say.

        Behind a window of attention (Mistral, Gemma) the masks here would show it more than it ever saw.
        """
        config = self.model.config
        names = ("max_position_embeddings", "sliding_window", "attention_chunk_size")
        said = [getattr(config, name, None) for name in names]
        return min((own for own in said if isinstance(own, int) and own > 0), default=None)

    @property
    def most_items(self) -> int | None:
        """Items of the longest prompt that fits with a target's codes behind it; below 0: not even the fixed text."""
        if self.most_tokens is None:
            return None
        item = LEVELS + len(self.prompt.between)
        return (self.most_tokens - self.prompt.length(1) - (LEVELS - 1)) // item + 1

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """The model's logits of one level's codes, [..., 256], from last hidden states [..., hidden]."""
        products = (hidden @ self.head[level].T).to(torch.promote_types(hidden.dtype, torch.float32))
        return self.readout(products if self.head_bias is None else products + self.head_bias[level])

    def target_logits(self, hidden: Tensor) -> Tensor:
        """As `level_logits` of each target's four levels: [targets, 4, 256] from [targets, 4, hidden]."""
        products = torch.einsum("nld,lcd->nlc", hidden, self.head.to(hidden.dtype))
        products = products.to(torch.promote_types(products.dtype, torch.float32))
        return self.readout(products if self.head_bias is None else products + self.head_bias)


def load_backbone(folder: Path, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Load a verified Hugging Face folder: safetensors only, nothing fetched, no code run.

    Raises ArtifactError when the folder is no causal LM with the semantic-ID tokens.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]  # the service logs; it does not draw
    try:
        with one_at_a_time():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder} does not load as a causal LM: {error}") from error
    prompt = load_prompt(folder)
    embeddings = model.get_input_embeddings()
    rows = embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else 0
    if rows < max(prompt.first_code_token + LEVELS * CODES, *(part.max(initial=0) + 1 for part in prompt.fixed)):
        raise ArtifactError(
            f"the model in {folder} has no rows for the {LEVELS * CODES} semantic-ID tokens; build the base again"
        )
    model.requires_grad_(False)
    model.train(False)
    nn.Module.to(model, device)
    return Backbone(model, prompt)


def weight_of(module: nn.Linear | Conv1D) -> Tensor:
    """[out, in], a view."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter matched with a backbone. pairs: A and B, float32, by the id of the weight that they adapt.

    A weight that is stored [in, out] has (B transposed, A transposed) for its pair.
    """

    pairs: dict[int, tuple[Tensor, Tensor]]
    scale: float

    def merged(self, weight: Tensor) -> Tensor:
        """W + scale * B A, computed in float32 and rounded once; `weight` itself where it is not adapted."""
        pair = self.pairs.get(id(weight))
        if pair is None:
            return weight
        a, b = (part.to(weight.device) for part in pair)
        return (b @ a).mul_(self.scale).add_(weight).to(weight.dtype)


def match_lora(backbone: Backbone, tensors: dict[str, Tensor], scale: float) -> Lora:
    """tensors: PEFT names (`base_model.model.<module>.lora_A.weight`), float32.

    Raises ArtifactError for a module that the backbone does not have or a shape that does not fit.
    """
    modules = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    if 2 * len(modules) != len(tensors):
        raise ArtifactError("the adapter's tensors are not pairs of lora_A and lora_B")
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for name in modules:
        try:
            module = backbone.model.get_submodule(name.removeprefix(LORA_PREFIX))
            a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        except (AttributeError, KeyError) as error:
            raise ArtifactError(f"the base has no module for {name}") from error
        if not isinstance(module, LINEAR) or (b.shape[0], a.shape[1]) != tuple(weight_of(module).shape):
            raise ArtifactError(f"{name} does not fit the base's weight")
        pairs[id(module.weight)] = (b.T, a.T) if isinstance(module, Conv1D) else (a, b)
    return Lora(pairs, scale)


def merge_lora(backbone: Backbone, tensors: dict[str, Tensor], scale: float) -> Backbone:
    """A backbone with the adapter merged into each adapted weight; all other weights are shared with `backbone`.

    Arguments and errors: see match_lora.
    """
    lora = match_lora(backbone, tensors, scale)
    # deepcopy takes from its memo what it has already "copied": merged weights for adapted ones, the others themselves.
    memo: dict[int, object] = {id(p): p for p in backbone.model.parameters()}
    for parameter in backbone.model.parameters():
        if id(parameter) in lora.pairs:
            memo[id(parameter)] = nn.Parameter(lora.merged(parameter), requires_grad=False)
    memo |= {id(buffer): buffer for buffer in backbone.model.buffers()}
    return Backbone(copy.deepcopy(backbone.model, memo), backbone.prompt)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU, bfloat16 on a GPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
