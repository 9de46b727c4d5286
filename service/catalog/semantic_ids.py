"""Item text -> four codes, with a codec that was fitted on D_1 and is frozen (fitted by trainer.tokenizer).

text -> embedding (TF-IDF + truncated SVD, MiniLM, or the base's own language model) -> encoder MLP (RQ-VAE; none for
residual k-means) -> residual quantisation over 4 codebooks of 256. numpy only: with
TF-IDF a new item needs no deep-learning runtime.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from service.catalog.trie import CODES, LEVELS
from service.errors import ArtifactError

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

Codes = tuple[int, int, int, int]
Float32 = NDArray[np.float32]
FORMAT = 1


class TextEncoder(Protocol):
    """Text -> one vector each, deterministic and frozen."""

    @property
    def kind(self) -> str: ...

    @property
    def instant(self) -> bool:
        """Whether a few hundred texts are done before a waiting transaction notices."""
        ...

    def encode(self, texts: Sequence[str]) -> Float32:
        """float32 [n, d], rows of unit length (or zero for a text without known words)."""
        ...

    def config(self) -> dict[str, Any]: ...

    def tensors(self) -> dict[str, Float32]: ...


@dataclass(frozen=True, eq=False)
class TfidfEncoder:
    """TF-IDF over words and pairs of words, projected by truncated SVD, rows normalised."""

    terms: tuple[str, ...]
    idf: Float32  # [terms]
    components: Float32  # [d, terms]
    kind: str = "tfidf"
    instant: bool = True

    @cached_property
    def _vectorizer(self) -> "TfidfVectorizer":
        vectorizer = make_vectorizer(vocabulary={term: i for i, term in enumerate(self.terms)})
        vectorizer.idf_ = self.idf.astype(np.float64)
        return vectorizer

    def encode(self, texts: Sequence[str]) -> Float32:
        if not texts:
            return np.empty((0, len(self.components)), dtype=np.float32)
        return unit_rows(np.asarray(self._vectorizer.transform(texts) @ self.components.T, dtype=np.float32))

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "terms": list(self.terms)}

    def tensors(self) -> dict[str, Float32]:
        return {"text.idf": self.idf, "text.components": self.components}


def make_vectorizer(vocabulary: dict[str, int] | None = None, max_features: int | None = None) -> "TfidfVectorizer":
    """The one TF-IDF configuration; digits count as words, since years and volumes tell items apart."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second to import: not for every command

    return TfidfVectorizer(
        vocabulary=vocabulary,
        max_features=max_features,
        ngram_range=(1, 2),
        sublinear_tf=True,
        token_pattern=r"(?u)\b\w+\b",  # noqa: S106  # a word, not a secret
    )


def unit_rows(matrix: Float32) -> Float32:
    """Rows scaled to length 1; zero rows stay zero."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(norms, 1e-12), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Codec:
    """The frozen tokenizer of one base.

    layers: RQ-VAE encoder as (weight [out, in], bias [out]) pairs, ReLU between; empty for residual k-means.
    codebooks: float32 [4, 256, d].
    """

    text_encoder: TextEncoder
    layers: tuple[tuple[Float32, Float32], ...]
    codebooks: Float32
    kind: str

    @property
    def instant(self) -> bool:
        """Whether a few hundred texts are done before a waiting transaction notices."""
        return self.text_encoder.instant

    def latent(self, texts: Sequence[str]) -> Float32:
        """float32 [n, d], what the codebooks quantise."""
        return self.project(self.text_encoder.encode(texts))

    def project(self, embeddings: Float32) -> Float32:
        """Encoder MLP over text embeddings."""
        hidden = embeddings
        for i, (weight, bias) in enumerate(self.layers):
            hidden = hidden @ weight.T + bias
            if i < len(self.layers) - 1:
                hidden = np.maximum(hidden, 0)
        return hidden

    def quantise(self, latent: Float32) -> tuple[NDArray[np.int16], Float32]:
        """Nearest codes by residual quantisation, int16 [n, 4], and the last level's squared distances [n, 256]."""
        residual = latent
        codes = np.empty((len(latent), LEVELS), dtype=np.int16)
        distances = np.empty((len(latent), CODES), dtype=np.float32)
        for level, book in enumerate(self.codebooks):
            distances = squared_distances(residual, book)
            codes[:, level] = distances.argmin(axis=1)
            residual = residual - book[codes[:, level]]
        return codes, distances

    def assign(self, texts: Sequence[str], taken: Iterable[Codes]) -> list[Codes]:
        """Codes for new items, unlike those in `taken` and each other where the last level still has room.

        An item whose nearest semantic ID is taken gets the nearest free code of the last level; when all 256 are
        taken under its prefix it shares the nearest one.
        """
        return self.place(self.latent(list(texts)), taken)

    def place(self, latent: Float32, taken: Iterable[Codes]) -> list[Codes]:
        """`assign` from what `latent` gave: the quick half of it."""
        codes, distances = self.quantise(latent)
        return spread(codes, distances, set(taken))

    def save(self, folder: Path) -> None:
        """Write codec.json and codec.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "format": FORMAT,
            "kind": self.kind,
            "levels": LEVELS,
            "codes": CODES,
            "layers": len(self.layers),
            "text_encoder": self.text_encoder.config(),
        }
        (folder / "codec.json").write_text(json.dumps(config, sort_keys=True, ensure_ascii=False), encoding="utf-8")
        tensors = {"codebooks": self.codebooks, **self.text_encoder.tensors()}
        for i, (weight, bias) in enumerate(self.layers):
            tensors |= {f"encoder.{i}.weight": weight, f"encoder.{i}.bias": bias}
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "codec.safetensors"
        )


def load_codec(folder: Path) -> Codec:
    """Read what Codec.save wrote. Give it only verified folders, beside the model where that encodes the texts.

    Raises ArtifactError when it is no codec.
    """
    try:
        config = json.loads((folder / "codec.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "codec.safetensors")
        if (config["format"], config["levels"], config["codes"]) != (FORMAT, LEVELS, CODES):
            raise ArtifactError(f"{folder} holds a codec of another format; build the base again with this version")
        encoder = _load_text_encoder(config["text_encoder"], tensors, folder)
        layers = tuple((tensors[f"encoder.{i}.weight"], tensors[f"encoder.{i}.bias"]) for i in range(config["layers"]))
        return Codec(encoder, layers, tensors["codebooks"], config["kind"])
    except (OSError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise ArtifactError(f"the codec in {folder} cannot be read ({error!r}); build the base again") from error


def _load_text_encoder(config: dict[str, Any], tensors: dict[str, Float32], folder: Path) -> TextEncoder:
    if config["kind"] == "tfidf":
        encoder = TfidfEncoder(tuple(config["terms"]), tensors["text.idf"], tensors["text.components"])
        encoder.encode([""])  # what it imports, now: not within the first request that brings an item
        return encoder
    if config["kind"] == "minilm":
        from service.generation.minilm import MiniLMEncoder  # a deep-learning runtime, only where it is asked for

        return MiniLMEncoder()
    if config["kind"] == "backbone":
        from service.generation.backbone_encoder import BackboneEncoder  # likewise

        return BackboneEncoder.open(folder.parent / "model")
    raise ArtifactError(f"unknown text encoder {config['kind']!r}; tfidf, minilm and backbone are known")


def squared_distances(points: Float32, centres: Float32) -> Float32:
    """float32 [n, k] squared Euclidean distances."""
    cross = points @ centres.T
    return np.asarray((points**2).sum(1, keepdims=True) - 2 * cross + (centres**2).sum(1), dtype=np.float32)


def spread(codes: NDArray[np.int16], distances: Float32, taken: set[Codes]) -> list[Codes]:
    """Greedy last-level reassignment in row order; `distances` is float32 [n, 256] of the last level."""
    used = set(taken)
    result: list[Codes] = []
    for row, near in zip(codes.tolist(), distances, strict=True):
        a, b, c, nearest = row
        chosen: Codes = (a, b, c, nearest)
        if chosen in used:
            for code in np.argsort(near, kind="stable").tolist():
                if (a, b, c, code) not in used:
                    chosen = (a, b, c, code)
                    break
        used.add(chosen)
        result.append(chosen)
    return result
