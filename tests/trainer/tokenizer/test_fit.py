"""Texts to semantic IDs: fitted once, frozen, and steady for the items that come later."""

from pathlib import Path

import numpy as np
import pytest

from service.catalog.semantic_ids import load_codec
from service.errors import CatalogueError
from trainer.tokenizer.fit import Quantiser, TokenizerConfig, fit_codec
from trainer.tokenizer.text_encoder import fit_tfidf

SUBJECTS = ("alien planet ship", "haunted house ghost", "love letter wedding", "heist bank gang", "war soldier front")
TEXTS = [f"{subject} part {i}" for i in range(20) for subject in SUBJECTS]


def config(quantiser: Quantiser) -> TokenizerConfig:
    return TokenizerConfig(quantiser, dimensions=32, hidden=(32,), latent=8, steps=100)


both = pytest.mark.parametrize("quantiser", Quantiser)


@both
def test_every_item_of_a_catalogue_gets_codes_of_its_own(quantiser: Quantiser) -> None:
    codec = fit_codec(TEXTS, config(quantiser), seed=0)

    codes = codec.assign(TEXTS, [])

    assert codec.kind == quantiser
    assert bool(codec.layers) == (quantiser is Quantiser.RQVAE)
    assert len(set(codes)) == len(TEXTS)
    assert all(0 <= code < 256 for own in codes for code in own)


@both
def test_a_new_item_shares_its_first_code_with_those_it_is_like(quantiser: Quantiser) -> None:
    codec = fit_codec(TEXTS, config(quantiser), seed=0)
    old = codec.assign(TEXTS, [])

    new = codec.assign([f"{subject} part 99" for subject in SUBJECTS], old)

    assert not set(new) & set(old)
    for i, own in enumerate(new):
        sharing = [j % len(SUBJECTS) for j, codes in enumerate(old) if codes[0] == own[0]]
        assert sharing.count(i) > len(sharing) / 2


@both
def test_a_saved_codec_gives_the_same_codes(quantiser: Quantiser, tmp_path: Path) -> None:
    codec = fit_codec(TEXTS, config(quantiser), seed=0)
    codec.save(tmp_path)

    assert load_codec(tmp_path).assign(TEXTS, []) == codec.assign(TEXTS, [])


@both
def test_one_seed_gives_one_codec(quantiser: Quantiser, tmp_path: Path) -> None:
    fit_codec(TEXTS, config(quantiser), seed=4).save(tmp_path / "one")
    fit_codec(TEXTS, config(quantiser), seed=4).save(tmp_path / "two")

    for name in ("codec.json", "codec.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@both
@pytest.mark.parametrize(
    "texts",
    [["alien ship"], ["alien"], ["alien", "", "alien"], ["alien ship"] * 5, ["alien ship", "wedding"], ["alien", ""]],
    ids=["one item", "one word", "one word and none", "all alike", "two items", "one without words"],
)
def test_a_catalogue_of_almost_nothing_still_gets_codes(quantiser: Quantiser, texts: list[str]) -> None:
    codec = fit_codec(texts, config(quantiser), seed=0)

    codes = codec.assign([*texts, "something else"], [])

    assert len(set(codes)) == len(texts) + 1
    assert np.isfinite(codec.codebooks).all()


@both
def test_a_large_catalogue_of_much_alike_texts_is_fitted_without_warnings(quantiser: Quantiser) -> None:
    texts = [f"film {i % 13} part {i % 29}" for i in range(600)]

    codes = fit_codec(texts, config(quantiser), seed=0).assign(texts, [])

    assert len(set(codes)) == 600


@pytest.mark.parametrize("texts", [[], ["", "!!", " - "]], ids=["no items", "no words"])
def test_without_words_there_is_nothing_to_fit(texts: list[str]) -> None:
    with pytest.raises(CatalogueError, match="items"):
        fit_codec(texts, TokenizerConfig(), seed=0)


def test_progress_is_told_step_by_step() -> None:
    told: list[int] = []

    fit_codec(TEXTS, config(Quantiser.RQVAE), seed=0, on_step=lambda step, _: told.append(step))

    assert told == list(range(1, 101))


def test_different_texts_are_different_directions_and_unit_length() -> None:
    encoder = fit_tfidf(["alien ship", "wedding"], dimensions=32, max_terms=100, seed=0)

    embeddings = encoder.encode(["alien ship", "wedding", "ship alien", "nothing known"])

    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), [1, 1, 1, 0], atol=1e-6)
    assert abs(embeddings[0] @ embeddings[1]) < 1e-6
    assert embeddings[0] @ embeddings[2] > 0.5


def test_the_embedding_has_no_more_dimensions_than_asked_for_and_the_vocabulary_no_more_terms() -> None:
    encoder = fit_tfidf(TEXTS, dimensions=7, max_terms=12, seed=0)

    assert encoder.components.shape == (7, 12)
    assert len(encoder.terms) == len(encoder.idf) == 12


def test_like_texts_are_nearer_than_unlike_ones() -> None:
    embeddings = fit_tfidf(TEXTS, dimensions=32, max_terms=1_000, seed=0).encode(TEXTS)

    near = embeddings @ embeddings.T
    same = np.equal.outer(np.arange(len(TEXTS)) % 5, np.arange(len(TEXTS)) % 5)
    assert near[same].min() > near[~same].max()
