"""What a language model must be able to do, asked of it before anything is trained on it.

Shared passes rest on what a model lets its caller say: where a token stands, and which tokens it sees. A list of
architectures would be wrong with the library's next version, so the model itself is asked, with the longest prompt and
the longest training sequence there will be: do the passes that training and search run give what plain ones give?
docs/backbones.md names the families that were tried.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from service.catalog.trie import CODES, LEVELS
from service.errors import ConfigurationError
from service.generation.backbone import LINEAR, Backbone
from service.generation.llama import is_plain_llama
from service.generation.passes import GeneralPasses
from trainer.decoder import decode_tokens, place
from trainer.examples import TrainingSequence
from trainer.fit import sequence_loss
from trainer.layout import lay_out
from trainer.lora import LoraBackbone, adaptable

FAMILIES = (
    "families that work: Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3, Phi 1 to 3, GPT-2, GPT-J, GPT-NeoX, OPT, Falcon "
    "(rotary), StableLM, OLMo, Granite, Cohere, SmolLM and mixtures of experts like Mixtral (docs/backbones.md)"
)
TOLERANCE = 1e-3
"""Of the spread of a level's log-probabilities. In float32 two right passes differ by 1e-5 of it or less."""
_ALIBI = {"bloom", "mpt"}
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""Of a model that takes no mask or position of its caller's, or whose state is no list of keys and values."""


def check_layers(model: PreTrainedModel, source: str) -> None:
    """Raises ConfigurationError for a model that has no layers for an adapter, or cannot be right by its own config."""
    config = model.config
    if config.is_encoder_decoder:
        raise _refused(model, source, "reads with an encoder; a prompt here is one sequence")
    if config.get_text_config() is not config:
        raise _refused(model, source, "is more than a text model; take its text-only counterpart")
    if getattr(model, "_is_stateful", False):
        raise _refused(model, source, "is recurrent: beams cannot share what it remembers of a prompt")
    if config.model_type in _ALIBI or getattr(config, "alibi", False):
        raise _refused(model, source, "counts distances itself (ALiBi), so that beams cannot share a prompt")
    if not _is_causal(model):
        raise _refused(model, source, "is an encoder: its tokens see those behind them")
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding) or scale_of(embeddings) is None:
        raise _refused(model, source, f"embeds its tokens with a {type(embeddings).__name__}")
    adapted = adaptable(model)
    if not adapted:
        raise _refused(model, source, "has no list of blocks with linear layers, so that no adapter fits it")
    targets = {name.rpartition(".")[2] for name in adapted}
    for name, module in model.named_modules():
        clashes = name not in adapted and name.rpartition(".")[2] in targets
        if clashes and isinstance(module, (*LINEAR, nn.Embedding)):
            raise _refused(model, source, f"has a layer {name}, which PEFT could not tell from those of its blocks")


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    try:
        one, two = (model(input_ids=torch.arange(n, device=model.device)[None]).logits[0, 0] for n in (1, 2))
    except _FAILURES:  # check_passes will say more
        return True
    return bool((one - two).abs().max() <= TOLERANCE * one.std())


def scale_of(embeddings: nn.Module) -> float | None:
    """What an embedding multiplies its rows with; None where it does not say."""
    scale = getattr(embeddings, "embed_scale", None)
    return 1.0 if type(embeddings) is nn.Embedding else None if scale is None else float(scale)


def check_passes(backbone: Backbone, source: str, history_items: int) -> None:
    """Raises ConfigurationError for a model whose shared passes would not be what plain passes are.

    history_items: most items of a prompt. The model is left as it was. A plain Llama is not asked: its passes are
    written out here, and tested.
    """
    model = backbone.model
    most = backbone.most_items
    if most is not None and history_items > most:
        fits = f"set ADAPTIDE_HISTORY_ITEMS to at most {most}" if most > 0 else "not even one item fits"
        raise _refused(
            model,
            source,
            f"reads at most {backbone.most_tokens} tokens, and a prompt of {history_items} items with what follows "
            f"has {backbone.prompt.length(history_items) + LEVELS - 1}; {fits}",
            families=False,
        )
    if is_plain_llama(model):
        return
    try:
        found = _trial(backbone, history_items)
        lost = _without_gradient(backbone)
    except _FAILURES as error:
        raise _refused(
            model, source, f"failed when it was tried ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    for what, difference in found.items():
        if not difference <= TOLERANCE:  # also when it is no number
            raise _refused(model, source, f"gives other scores {what}, off by {difference:.2g} of their spread")
    if lost:
        raise _refused(model, source, f"does not train an adapter of {lost}")


@torch.no_grad()
def _trial(backbone: Backbone, history_items: int) -> dict[str, float]:
    """What was compared with the model's own logits of whole prompts -> largest difference, a share of their spread."""
    random = np.random.default_rng(0)
    codes = random.integers(0, CODES, (history_items + 2, LEVELS)).astype(np.int16)
    history, target, other = codes[:-2], codes[-2].astype(np.int64), codes[-1].astype(np.int64)
    text = backbone.prompt.encode(history)
    whole = _logits(backbone, text, target)
    spread = float(whole.std())

    def off(found: Tensor, expected: Tensor) -> float:
        return float((found.double() - expected).abs().max()) / spread

    tokens = torch.from_numpy(np.concatenate([text, (target + backbone.prompt.offsets)[:-1]]))[None]
    hidden = backbone.decoder(input_ids=tokens.to(backbone.device), use_cache=False).last_hidden_state
    own = torch.stack([backbone.level_logits(hidden[0, len(text) - 1 + level], level) for level in range(LEVELS)])
    found = {"than its head's rows do (an unknown scale or cap on its logits)": off(_log(own), whole)}
    for level, beams in enumerate(_search(backbone, text, target, other)):
        key = "where later tokens follow (it is no causal model)" if not level else "where beams share a prompt"
        found[key] = max(found.get(key, 0.0), off(_log(beams), whole[level]))

    piece = (history_items + 1) // 2  # as trainer.examples.pieces
    first = history_items + 1 - piece
    sequence = TrainingSequence(np.arange(history_items + 1), first)
    layout = lay_out(backbone.prompt, [sequence], codes)
    placed = place(layout, backbone.device)
    hidden = decode_tokens(backbone, placed).flatten(0, 1)[placed.predicts]
    trained = _log(backbone.target_logits(hidden))
    early = _logits(backbone, backbone.prompt.encode(codes[:first]), codes[first].astype(np.int64))
    key = "where a user's targets share a history (a window that is shorter than a training sequence, perhaps)"
    found[key] = max(off(trained[0], early), off(trained[-1], whole))
    return found


def _logits(backbone: Backbone, text: NDArray[np.int64], target: NDArray[np.int64]) -> Tensor:
    """float64 [4, 256], the referee: the model's own logits of a prompt and a target's codes as one sequence."""
    tokens = torch.from_numpy(np.concatenate([text, (target + backbone.prompt.offsets)[:-1]]))[None]
    logits = backbone.model(input_ids=tokens.to(backbone.device), use_cache=False).logits[0, len(text) - 1 :]
    offsets = backbone.prompt.offsets.tolist()
    return _log(torch.stack([logits[level, start : start + CODES] for level, start in enumerate(offsets)]))


def _log(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), dim=-1)


def _search(
    backbone: Backbone, text: NDArray[np.int64], target: NDArray[np.int64], other: NDArray[np.int64]
) -> list[Tensor]:
    """Logits [256] of the target's levels where its beam shares a cache with another's, beside a shorter prompt."""
    device, length, short = backbone.device, len(text), max(1, len(text) // 2)
    prompts = torch.from_numpy(np.stack([text, np.concatenate([text[:short], np.zeros(length - short, np.int64)])]))
    lengths = torch.tensor([length, short], device=device)
    passes = GeneralPasses(backbone.decoder)
    found = [backbone.level_logits(passes.prefill(prompts.to(device), lengths)[0], 0)]
    visible = (torch.arange(length, device=device) < lengths[:, None])[:, None].expand(2, 2, -1)
    own = torch.eye(2, dtype=torch.bool, device=device).expand(2, -1, -1)
    for level in range(1, LEVELS):
        visible = torch.cat([visible, own], dim=2)
        pair = np.stack([other, target])[:, level - 1] + backbone.prompt.offsets[level - 1]
        tokens = torch.from_numpy(np.tile(pair, (2, 1))).to(device)
        hidden = passes.step(tokens, (lengths + level - 1)[:, None].expand(-1, 2), visible)
        found.append(backbone.level_logits(hidden[0, 1], level))
    return found


def _without_gradient(backbone: Backbone) -> str:
    """The first module whose adapter gets no gradient; empty where all do."""
    codes = np.random.default_rng(1).integers(0, CODES, (2, LEVELS)).astype(np.int16)
    wanted: dict[str, Any] = {name: p.requires_grad for name, p in backbone.model.named_parameters()}
    lora = LoraBackbone(backbone, rank=1, alpha=1, dropout=0.0, seed=0)
    try:
        loss, _ = sequence_loss(backbone, [TrainingSequence(np.arange(2), 1)], codes)
        names = [name for name in lora.parameters if ".lora_B." in name]
        gradients = torch.autograd.grad(loss, [lora.parameters[name] for name in names], allow_unused=True)
        lost = (n for n, g in zip(names, gradients, strict=True) if g is None or not bool(torch.isfinite(g).all()))
        return next(lost, "").partition(".lora_B.")[0]
    finally:
        lora.unwrap()
        for name, parameter in backbone.model.named_parameters():
            parameter.requires_grad_(wanted[name])


def _refused(model: PreTrainedModel, source: str, why: str, *, families: bool = True) -> ConfigurationError:
    about = f"backbone {source} ({type(model).__name__}) {why}"
    return ConfigurationError(f"{about}; {FAMILIES}" if families else about)
