"""Texts of D_1's items -> a frozen Codec and the codes of those items."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from service.catalog.semantic_ids import Codec, TextEncoder
from service.errors import CatalogueError
from trainer.tokenizer.rqkmeans import fit_rqkmeans
from trainer.tokenizer.rqvae import fit_rqvae
from trainer.tokenizer.text_encoder import fit_tfidf


class Quantiser(StrEnum):
    RQVAE = "rqvae"
    RQKMEANS = "rqkmeans"


class TextEncoderKind(StrEnum):
    TFIDF = "tfidf"
    MINILM = "minilm"
    BACKBONE = "backbone"


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """How semantic IDs are made. The paper's MLP is 2048-1024-512-256-128-64 (METHODS.md); a few thousand items with
    short texts need a fraction of it, and the newcomer's wait counts."""

    quantiser: Quantiser = Quantiser.RQVAE
    text_encoder: TextEncoderKind = TextEncoderKind.TFIDF
    dimensions: int = 256
    max_terms: int = 20_000
    hidden: tuple[int, ...] = (512, 256, 128)
    latent: int = 32
    steps: int = 1_500


def fit_codec(
    texts: Sequence[str],
    config: TokenizerConfig,
    *,
    seed: int,
    language_model: TextEncoder | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Codec:
    """Fit on the texts of D_1's items. on_step(step, loss) reports an RQ-VAE's progress of `config.steps`.

    language_model: the encoder of kind `backbone`, if that is what the configuration asks for.

    Raises CatalogueError for no items or items without words.
    """
    if not texts:
        raise CatalogueError("there are no items with events to fit semantic IDs on; import items and events first")
    encoder = _fit_text_encoder(texts, config, seed, language_model)
    embeddings = encoder.encode(texts)
    if config.quantiser is Quantiser.RQKMEANS:
        return Codec(encoder, (), fit_rqkmeans(embeddings, seed=seed), config.quantiser.value)
    layers, books = fit_rqvae(
        embeddings, hidden=config.hidden, latent=config.latent, steps=config.steps, seed=seed, on_step=on_step
    )
    return Codec(encoder, layers, books, config.quantiser.value)


def _fit_text_encoder(
    texts: Sequence[str], config: TokenizerConfig, seed: int, language_model: TextEncoder | None
) -> TextEncoder:
    if config.text_encoder is TextEncoderKind.BACKBONE:
        assert language_model is not None  # noqa: S101  # trainer.base.BaseRecipe sees to it
        return language_model
    if config.text_encoder is TextEncoderKind.MINILM:
        from service.generation.minilm import MiniLMEncoder  # an optional package

        return MiniLMEncoder()
    return fit_tfidf(texts, dimensions=config.dimensions, max_terms=config.max_terms, seed=seed)
