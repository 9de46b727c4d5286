"""A pretrained language model becomes a backbone: its tokens, its prompt, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from service.catalog.trie import CODES, LEVELS
from service.errors import ConfigurationError
from service.generation.prompt import code_tokens
from tests.language_models import byte_tokenizer, llama, prefixing_tokenizer, saved
from trainer.language_model import (
    AFTER,
    BEFORE,
    BETWEEN,
    SMOLLM2,
    add_code_tokens,
    instruction_prompt,
    load_language_model,
    load_trainable,
    save_language_model,
    token_rows,
)

HISTORY = np.array([[0, 1, 2, 3], [255, 254, 253, 252], [17, 17, 17, 17], [0, 1, 2, 3]], dtype=np.int16)


def written(history: np.ndarray) -> str:
    """The paper's prompt in words."""
    names = code_tokens()
    items = ["".join(names[CODES * level + code] for level, code in enumerate(item)) for item in history.tolist()]
    return BEFORE + BETWEEN.join(items) + AFTER


@pytest.mark.parametrize("items", [1, 2, 4])
@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), byte_tokenizer(start=True)], ids=["plain", "with a start"])
def test_the_prompt_is_the_tokenizers_own_cut_of_the_papers_text(
    tokenizer: PreTrainedTokenizerFast, items: int
) -> None:
    first = add_code_tokens(llama(len(tokenizer)), tokenizer, seed=0)

    prompt = instruction_prompt(tokenizer, first)

    assert prompt.encode(HISTORY[:items]).tolist() == tokenizer(written(HISTORY[:items]))["input_ids"]


@pytest.mark.parametrize("items", [1, 2, 4])
def test_an_end_that_a_tokenizer_puts_behind_every_text_is_no_part_of_the_prompt(items: int) -> None:
    tokenizer = prefixing_tokenizer()
    first = add_code_tokens(llama(len(tokenizer)), tokenizer, seed=0)

    prompt = instruction_prompt(tokenizer, first)

    assert [*prompt.encode(HISTORY[:items]).tolist(), 1] == tokenizer(written(HISTORY[:items]))["input_ids"]


@pytest.mark.parametrize("tied", [True, False])
def test_semantic_id_tokens_get_rows_as_wide_as_those_there(tied: bool) -> None:
    tokenizer = byte_tokenizer()
    model = llama(len(tokenizer), tied=tied)
    before = [rows.detach().clone() for rows in token_rows(model)]

    first = add_code_tokens(model, tokenizer, seed=3)

    assert first == len(before[0])
    assert tokenizer.convert_tokens_to_ids(["<a_0>", "<d_255>"]) == [first, first + LEVELS * CODES - 1]
    after = token_rows(model)
    assert len(after) == len(before) == (1 if tied else 2)
    for own, old in zip(after, before, strict=True):
        assert own.shape == (first + LEVELS * CODES, 32)
        assert torch.equal(own[:first], old)
        assert own[first:].std().item() == pytest.approx(old.std().item(), rel=0.05)


def test_rows_that_a_padded_vocabulary_has_to_spare_are_used() -> None:
    tokenizer = byte_tokenizer()
    model = llama(len(tokenizer) + LEVELS * CODES + 7)

    first = add_code_tokens(model, tokenizer, seed=0)

    assert first == len(tokenizer) - LEVELS * CODES
    assert token_rows(model)[0].shape[0] == len(tokenizer) + 7


def test_a_model_that_has_the_tokens_keeps_their_rows() -> None:
    tokenizer = byte_tokenizer()
    model = llama(len(tokenizer))
    first = add_code_tokens(model, tokenizer, seed=0)
    before = token_rows(model)[0].detach().clone()

    assert add_code_tokens(model, tokenizer, seed=1) == first
    assert torch.equal(token_rows(model)[0], before)


def test_semantic_id_tokens_in_another_order_are_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<b_7>"])
    with pytest.raises(ConfigurationError, match="another order"):
        add_code_tokens(llama(len(tokenizer)), tokenizer, seed=0)


def test_a_folder_is_loaded_and_saved_with_its_prompt(tmp_path: Path) -> None:
    found = load_language_model(str(saved(tmp_path / "downloaded")), seed=0)

    save_language_model(found, tmp_path / "base")
    again = load_trainable(tmp_path / "base", torch.device("cpu"))

    prompt = found.backbone.prompt
    assert (again.prompt.kind, again.first_code_token) == ("instruction", prompt.first_code_token)
    assert again.prompt.encode(HISTORY).tolist() == prompt.encode(HISTORY).tolist()
    assert next(again.model.parameters()).dtype is torch.float32  # on a CPU, whatever it is stored in
    assert not any(p.requires_grad for p in again.model.parameters())
    assert {path.suffix for path in (tmp_path / "base").iterdir()} == {".json", ".safetensors"}


def test_weights_that_would_have_to_be_unpickled_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    torch.save(llama(300).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="safetensors"):
        load_language_model(str(folder), seed=0)


def test_what_is_no_model_is_refused_with_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (str(tmp_path / "empty"), str(tmp_path / "nowhere")):
        with pytest.raises(ConfigurationError, match="`tiny`, `smollm2`, a folder"):
            load_language_model(source, seed=0)


def test_a_model_without_a_layer_that_lora_adapts_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"q_proj.*Llama-like"):
        load_language_model(str(tmp_path), seed=0)


def test_smollm2_comes_with_the_papers_prompt() -> None:
    found = load_language_model(SMOLLM2, seed=0)

    tokenizer, prompt = found.tokenizer, found.backbone.prompt
    assert prompt.first_code_token == 49_152
    assert prompt.encode(HISTORY).tolist() == tokenizer(written(HISTORY))["input_ids"]
    assert tokenizer.decode(prompt.encode(HISTORY[:2])) == written(HISTORY[:2])
