"""Language models small enough for a test: a real architecture, a real tokenizer, random weights."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from trainer.language_model import AFTER, BEFORE, BETWEEN

LETTERS = [chr(code) for code in range(32, 127)]


def byte_tokenizer(*, start: bool = False, dropout: float | None = None) -> PreTrainedTokenizerFast:
    """Byte-level pieces, as GPT-2 and SmolLM2 have them, made from the prompt's own words so that it is short.

    start: a start token stands before every text. dropout: how often it leaves pieces apart that it could join.
    """
    tokenizer = Tokenizer(BPE(dropout=dropout))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=700, special_tokens=["<|end|>", "<|start|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([BEFORE, BETWEEN, AFTER], trainer)
    if start:
        tokenizer.post_processor = TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|start|>")


def prefixing_tokenizer(prefix: str = "always") -> PreTrainedTokenizerFast:
    """Puts a mark for a space before a text and before each word, and an end behind, as SentencePiece models may.

    prefix: `always`: before each part of a text between special tokens; `first`: before the first only; `normalised`:
    before each part, by the normaliser, as Llama 2 does.
    """
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("\n", -2.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS[1:])]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
    if prefix == "normalised":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def llama(vocabulary: int, *, tied: bool = False, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
            initializer_range=0.1,
        )
    )


def qwen2(vocabulary: int) -> PreTrainedModel:
    """Another architecture: biases on query, key and value, a head of its own."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            initializer_range=0.1,
        )
    )


def saved(folder: Path, *, tied: bool = False, model: PreTrainedModel | None = None) -> Path:
    """A folder as one downloads it. model: instead of a Llama, for the words of byte_tokenizer()."""
    tokenizer = byte_tokenizer()
    (model or llama(len(tokenizer), tied=tied)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
