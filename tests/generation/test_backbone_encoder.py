"""The base's own language model as the text encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from service.errors import ArtifactError
from service.generation.backbone_encoder import MOST_TOKENS, BackboneEncoder
from tests.architectures import make
from tests.language_models import byte_tokenizer, llama, prefixing_tokenizer, saved
from trainer.language_model import LanguageModel, load_language_model, save_language_model

TEXTS = ["red kettle", "", "green lamp. lamp, with a long text behind it", "black", "red kettle"]


def encoder_of(model: LanguageModel, batch_size: int = 16) -> BackboneEncoder:
    return BackboneEncoder(model.backbone.model, model.tokenizer, batch_size)


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    return load_language_model(str(saved(tmp_path / "source")), seed=0)


def test_a_vector_is_the_mean_of_the_last_hidden_states_at_length_one(model: LanguageModel) -> None:
    tokens = torch.tensor([model.tokenizer("green lamp")["input_ids"]])
    with torch.inference_mode():
        states = model.backbone.model(input_ids=tokens, output_hidden_states=True).hidden_states[-1][0]
    expected = states.mean(0) / states.mean(0).norm()

    np.testing.assert_allclose(encoder_of(model).encode(["green lamp"])[0], expected, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "opt", "mixtral"])
def test_a_padded_batch_gives_the_masked_means_that_transformers_gives(tmp_path: Path, family: str) -> None:
    """With padding, attention mask and positions made by the libraries themselves, padded on either side."""
    folder = saved(tmp_path / "source", model=make(family, len(byte_tokenizer())))
    model = load_language_model(str(folder), seed=0)
    texts = [text for text in TEXTS if text]
    found = encoder_of(model).encode(texts)

    tokenizer = model.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        mask = batch["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            states = model.backbone.decoder(
                input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        np.testing.assert_allclose(found, means / means.norm(dim=1, keepdim=True), atol=1e-5)


def test_who_shares_its_batch_changes_nothing(model: LanguageModel) -> None:
    together = encoder_of(model).encode(TEXTS)
    alone = np.concatenate([encoder_of(model, batch_size=1).encode([text]) for text in TEXTS])

    assert together.shape == (5, 32)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), [1, 0, 1, 1, 1], atol=1e-5)
    np.testing.assert_allclose(together[0], together[4], atol=1e-6)
    assert encoder_of(model).encode([]).shape == (0, 32)


def test_a_text_counts_up_to_its_256th_token(model: LanguageModel) -> None:
    long = "kettle " * 2 * MOST_TOKENS
    cut, longer, other = encoder_of(model).encode([long, long + "lamp", "lamp " + long])

    np.testing.assert_allclose(cut, longer, atol=1e-6)
    assert np.abs(cut - other).max() > 1e-4


def test_a_semantic_id_spelt_in_a_text_is_text(model: LanguageModel) -> None:
    """Its row is learnt later, so what is fitted on it now would not be what a later item gets."""
    before = encoder_of(model).encode(["kettle <a_1> lamp"])
    first = model.backbone.first_code_token
    with torch.no_grad():
        model.backbone.model.get_input_embeddings().weight[first:] += 1

    np.testing.assert_array_equal(encoder_of(model).encode(["kettle <a_1> lamp"]), before)


@pytest.mark.parametrize(
    "tokenizer",
    [byte_tokenizer(start=True), *map(prefixing_tokenizer, ("always", "first", "normalised"))],
    ids=["start", "always", "first", "normalised"],
)
def test_a_saved_model_encodes_as_the_one_that_was_there(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    llama(len(tokenizer)).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    model = load_language_model(str(tmp_path / "source"), seed=0)
    before = encoder_of(model).encode(TEXTS)

    save_language_model(model, tmp_path / "model")

    np.testing.assert_allclose(BackboneEncoder.open(tmp_path / "model").encode(TEXTS), before, atol=1e-6)


def test_a_base_without_its_tokenizer_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    save_language_model(model, tmp_path / "model")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()

    with pytest.raises(ArtifactError, match="no tokenizer"):
        BackboneEncoder.open(tmp_path / "model")
