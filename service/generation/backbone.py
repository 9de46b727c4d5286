"""The causal LM behind every engine: loaded from a verified folder, LoRA merged into a copy of the adapted weights."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from service.catalog.trie import CODES, LEVELS
from service.errors import ArtifactError
from service.generation.prompt import COMPACT, Prompt, load_prompt

LORA_PREFIX = "base_model.model."  # PEFT's name for the wrapped model


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal LM and the prompt it was trained with, which says where its semantic-ID tokens lie.

    head: [4, 256, hidden], the output rows of each level's codes.
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
    def device(self) -> torch.device:
        return self.model.device


def load_backbone(folder: Path, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Load a verified Hugging Face folder: safetensors only, nothing fetched, no code run.

    Raises ArtifactError when the folder is no causal LM with the semantic-ID tokens.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]  # the service logs; it does not draw
    try:
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


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter matched with a backbone. pairs: A and B, float32, by the id of the weight that they adapt."""

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
        if not isinstance(module, nn.Linear) or (b.shape[0], a.shape[1]) != tuple(module.weight.shape):
            raise ArtifactError(f"{name} does not fit the base's weight")
        pairs[id(module.weight)] = (a, b)
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
