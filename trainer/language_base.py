"""A base from a pretrained language model: what D_1 changes in it (METHODS.md, the first adapter).

`lora`: the rows of the semantic-ID tokens and a LoRA learn together; then the rows are frozen into the base and that
LoRA is adapter 1. `full`: all weights learn, and adapter 1 changes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.catalog.trie import CODES, LEVELS
from service.generation.backbone import Backbone
from service.settings import Settings
from trainer.checkpoints import Checkpoints
from trainer.evaluation import validation_loss
from trainer.examples import Case, Examples
from trainer.fit import FitConfig, FitReport, Progress, fit
from trainer.group import ALONE, Group
from trainer.language_check import scale_of
from trainer.language_model import LanguageModel, token_rows
from trainer.lora import LoraBackbone
from trainer.methods.base import Adapter
from trainer.resume import circumstances

FIRST_ADAPTER = "base"


class TrainMode(StrEnum):
    LORA = "lora"
    FULL = "full"


# The paper's rate of D_1 (appendix C.2); all weights at once want less.
RATES = {TrainMode.LORA: 1e-3, TrainMode.FULL: 3e-4}


@dataclass(frozen=True, slots=True)
class LanguageRecipe:
    """source: see trainer.language_model. learning_rate: None for the mode's own."""

    source: str
    train: TrainMode = TrainMode.LORA
    epochs: int = 4
    batch_size: int = 32
    weight_decay: float = 0.01
    learning_rate: float | None = None


@dataclass(frozen=True, eq=False)
class _CodeBackbone(Backbone):
    """A backbone whose semantic-ID rows are parameters of their own. code_head: [1024, hidden], those of the head."""

    code_head: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def head(self) -> Tensor:
        return self.code_head.view(LEVELS, CODES, -1)


class _CodeEmbedding(nn.Module):
    """An embedding of which only the rows of the semantic-ID tokens train."""

    def __init__(self, words: nn.Embedding, codes: nn.Parameter, first: int) -> None:
        super().__init__()
        self.words, self.codes, self._first, self._scale = words, codes, first, scale_of(words)

    def forward(self, tokens: Tensor) -> Tensor:
        place = tokens - self._first
        is_code = (place >= 0) & (place < len(self.codes))
        codes = nn.functional.embedding(place.clamp(0, len(self.codes) - 1), self.codes)
        codes = codes if self._scale in (None, 1.0) else codes * self._scale
        return torch.where(is_code[..., None], codes, self.words(tokens).to(codes.dtype))


def train_language_base(
    language_model: LanguageModel,
    recipe: LanguageRecipe,
    examples: Examples,
    validation: Sequence[Case],
    codes: NDArray[np.int16],
    settings: Settings,
    *,
    device: torch.device,
    low_precision: bool,
    on_step: Progress,
    group: Group = ALONE,
    kept: Checkpoints | None = None,
) -> tuple[Adapter | None, FitReport]:
    """Train in place on D_1 and keep the epoch with the lowest validation loss; the model is frozen afterwards.

    Returns adapter 1, None where it changes nothing. codes: int16 [catalogue rows, 4]. group, kept: see fit.
    """
    backbone = language_model.backbone
    nn.Module.to(backbone.model, device)
    config = FitConfig(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate or RATES[recipe.train],
        weight_decay=recipe.weight_decay,
        warmup=0.01,
        low_precision=low_precision,
        seed=settings.seed,
    )

    if kept is not None:
        lora = settings.lora_rank, settings.lora_alpha, settings.lora_dropout
        known = circumstances(examples.training, validation, codes, config, backbone.device, group)
        kept = kept.keyed(recipe.train, lora, known)

    def train(trained: Backbone, parameters: Sequence[nn.Parameter]) -> FitReport:
        return fit(
            trained,
            parameters,
            lambda random: examples.training,
            codes,
            config,
            evaluate=lambda: -validation_loss(trained, validation, codes, low_precision=low_precision, group=group),
            on_step=on_step,
            group=group,
            kept=kept,
        )

    if recipe.train is TrainMode.FULL:
        backbone.model.requires_grad_(True)
        report = train(backbone, list(backbone.model.parameters()))
        backbone.model.requires_grad_(False)
        return None, report
    return _train_rows_and_lora(backbone, train, settings)


def _train_rows_and_lora(
    backbone: Backbone, train: Callable[[Backbone, Sequence[nn.Parameter]], FitReport], settings: Settings
) -> tuple[Adapter, FitReport]:
    model, first = backbone.model, backbone.first_code_token
    span = slice(first, first + LEVELS * CODES)
    weights = token_rows(model)
    rows = [nn.Parameter(weight[span].detach().float().clone()) for weight in weights]
    words = model.get_input_embeddings()
    assert isinstance(words, nn.Embedding)  # noqa: S101  # a causal LM has one
    model.set_input_embeddings(_CodeEmbedding(words, rows[0], first))
    split = _CodeBackbone(model, backbone.prompt, rows[-1])
    lora = LoraBackbone(
        split,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        seed=settings.seed,
    )
    try:
        report = train(split, [*lora.parameters.values(), *rows])
        with torch.no_grad():
            for weight, own in zip(weights, rows, strict=True):
                weight[span] = own.to(weight.dtype)
        return Adapter(lora.tensors(), lora.scale, FIRST_ADAPTER), report
    finally:
        lora.unwrap()
        model.set_input_embeddings(words)
