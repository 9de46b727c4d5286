"""Pretrained language models as backbones: where they come from, their semantic-ID tokens, the paper's prompt."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from service.adapters.base_files import TOKENIZER, check_text
from service.adapters.lora import ADAPTED_LAYERS, Dimensions
from service.catalog.trie import CODES, LEVELS
from service.errors import ArtifactError, ConfigurationError
from service.generation.backbone import Backbone, load_backbone
from service.generation.prompt import Prompt, code_tokens
from trainer.language_check import check_layers
from trainer.language_source import open_source
from trainer.lora import dimensions_of

STORED = torch.bfloat16

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

    source: see trainer.language_source. Raises ConfigurationError when it cannot be had, or has no layers that an
    adapter fits; whether its passes can be shared, trainer.language_check asks.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model, tokenizer = open_source(source)
    check_layers(model, source)
    check_patterns(tokenizer, source)
    first = add_code_tokens(model, tokenizer, seed)
    with torch.no_grad():
        for parameter in model.parameters():  # to what is stored: D_1 learns against the very weights that are served
            parameter.copy_(parameter.to(STORED))
    model.requires_grad_(False)
    model.train(False)
    return LanguageModel(Backbone(model, instruction_prompt(tokenizer, first)), tokenizer)


def check_patterns(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raises ConfigurationError for what no base may hold, now and not when it is published after its training."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        try:
            check_text(TOKENIZER, json.loads(backend.to_str()), ())
        except ArtifactError as error:
            raise ConfigurationError(f"{source} cannot be a backbone: {error.detail}") from error


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
    for name in [name for name in tokenizer.init_kwargs if name == "auto_map" or name.endswith(("_file", "_files"))]:
        tokenizer.init_kwargs.pop(name)
    model.save_pretrained(folder)
    save_layers(model, folder)
    tokenizer.chat_template = None  # a file of its own otherwise, and code in a template language
    tokenizer.save_pretrained(folder)
    language_model.backbone.prompt.save(folder)


def save_layers(model: PreTrainedModel, folder: Path) -> None:
    """Write which layers adapters adapt, unless the folder's config says it as a Llama's does."""
    own = dimensions_of(model)
    try:
        told = Dimensions.of(json.loads((folder / "config.json").read_text(encoding="utf-8"))) == own
    except ArtifactError:  # not even a Llama's sizes
        told = False
    if not told:
        (folder / ADAPTED_LAYERS).write_text(json.dumps(own.as_json(), indent=1), encoding="utf-8")


def load_trainable(folder: Path, device: torch.device) -> Backbone:
    """A verified base's model as an update trains on it: float32, or on a GPU what it is stored in."""
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    half = "bfloat16" in (stored.get("dtype"), stored.get("torch_dtype"))
    return load_backbone(folder, device, torch.bfloat16 if half and device.type == "cuda" else torch.float32)
