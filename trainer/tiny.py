"""The `tiny` backbone: a small Llama trained from scratch on D_1, and its tokenizer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from service.catalog.index import CatalogueIndex
from service.generation.backbone import Backbone
from service.generation.prompt import BOS, EOS, PAD, SPECIAL_TOKENS, VOCABULARY, code_tokens
from service.generation.torch_engine import TorchModel
from service.recommend.ranking import Float64
from trainer.checkpoints import Checkpoints
from trainer.evaluation import DEPTH, model_ranks, ndcg
from trainer.examples import Case, Examples, TrainingSequence
from trainer.fit import FitConfig, FitReport, Progress, fit
from trainer.group import ALONE, Group
from trainer.resume import circumstances


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """A Llama small enough to train from scratch on two cores."""

    hidden: int = 256
    layers: int = 6
    heads: int = 8

    def llama(self) -> LlamaConfig:
        """A plain Hugging Face Llama, so that any engine loads it."""
        return LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            intermediate_size=int(self.hidden * 8 / 3) // 32 * 32,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )


def new_tiny(config: TinyConfig, seed: int) -> Backbone:
    """Random weights, float32."""
    torch.manual_seed(seed)
    return Backbone(LlamaForCausalLM(config.llama()))


def train_base(
    config: TinyConfig,
    examples: Examples,
    index: CatalogueIndex,
    popularity: Float64,
    fit_config: FitConfig,
    *,
    validation: Sequence[Case],
    piece: int,
    device: torch.device,
    on_step: Progress,
    group: Group = ALONE,
    kept: Checkpoints | None = None,
) -> tuple[Backbone, FitReport]:
    """Train all weights on D_1 and keep the epoch with the best validation NDCG@10.

    piece: items in a training sequence; each pass cuts every user's items at another offset. group, kept: see fit.
    """
    backbone = new_tiny(config, fit_config.seed)
    nn.Module.to(backbone.model, device)

    def evaluate() -> float:
        model = TorchModel(backbone, "training", None, least_beams=DEPTH)
        ranks = model_ranks(model, validation, index, popularity, group=group)
        return float(ndcg(ranks, DEPTH).mean()) if validation else 0.0

    def sequences(random: np.random.Generator) -> list[TrainingSequence]:
        return [piece for whole in users for piece in cut(whole, piece_items, random)]

    users, piece_items = whole_sequences(examples), piece
    parameters = list(backbone.model.parameters())
    if kept is not None:
        whole = [TrainingSequence(rows, 0) for rows in users]
        kept = kept.keyed(circumstances(whole, validation, index.codes, fit_config, backbone.device, group))
    report = fit(
        backbone,
        parameters,
        sequences,
        index.codes,
        fit_config,
        evaluate=evaluate,
        on_step=on_step,
        group=group,
        kept=kept,
    )
    backbone.model.requires_grad_(False)
    return backbone, report


def whole_sequences(examples: Examples) -> list[NDArray[np.int64]]:
    """Each user's training items in one piece, from the pieces that `examples` holds in order."""
    users = groupby(examples.training, key=lambda sequence: sequence.user)
    return [np.concatenate([piece.rows[piece.first_target :] for piece in pieces]) for _, pieces in users]


def cut(rows: NDArray[np.int64], size: int, random: np.random.Generator) -> Iterator[TrainingSequence]:
    """Pieces of `size` rows from a random offset; every row is a target once."""
    if len(rows) <= size:
        yield TrainingSequence(rows, 0)
        return
    first = int(random.integers(1, size + 1))
    for start, end in zip(
        [0, *range(first, len(rows), size)], [*range(first, len(rows), size), len(rows)], strict=True
    ):
        yield TrainingSequence(rows[start:end], 0)


def save_model(backbone: Backbone, folder: Path) -> None:
    """An ordinary Hugging Face folder: config, safetensors, tokenizer."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of a file that is written in a moment
    backbone.model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Start, end and padding tokens and the 1,024 semantic-ID tokens, one id each; splits at white space."""
    words = [*SPECIAL_TOKENS, *code_tokens()]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106  # tokens of a language, not secrets
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
    )


def low_precision_pays(device: torch.device) -> bool:
    """bfloat16 autocast: on GPUs, and on CPUs that multiply bfloat16 in hardware (about twice as fast there)."""
    if device.type == "cuda":
        return True
    has: Callable[[str], bool] = lambda name: bool(torch.cpu.get_capabilities().get(name))  # noqa: E731
    return has("avx512_bf16") or has("amx_bf16")
