"""The RQ-VAE: it reconstructs better than it began, spreads its codes, and its numpy half says the same."""

import numpy as np
import pytest
import torch
from torch import nn

from service.catalog.semantic_ids import Codec, TfidfEncoder
from trainer.tokenizer.rqvae import RqVae, fit_rqvae


def clustered(items: int = 600, clusters: int = 256, dimensions: int = 16, seed: int = 0) -> np.ndarray:
    """float32 [items, dimensions], unit rows around `clusters` directions."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, dimensions))
    points = centres[np.arange(items) % clusters] + 0.05 * random.normal(size=(items, dimensions))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def quantised(data: np.ndarray, steps: int, seed: int = 0, **options: object) -> tuple[Codec, list[float]]:
    """The codec after `steps`, and the loss at each."""
    losses: list[float] = []
    layers, books = fit_rqvae(
        data,
        hidden=(32,),
        latent=8,
        steps=steps,
        seed=seed,
        on_step=lambda _, loss: losses.append(loss),
        **options,  # type: ignore[arg-type]
    )
    nothing = np.empty(0, dtype=np.float32)
    encoder = TfidfEncoder((), nothing, np.empty((0, 0), dtype=np.float32))
    return Codec(encoder, layers, books, "rqvae"), losses


def test_a_step_reconstructs_from_the_codes_and_gradients_pass_straight_through() -> None:
    torch.manual_seed(0)
    model = RqVae(5, (7,), 3)
    with torch.no_grad():
        model.codebooks.copy_(torch.randn(4, 256, 3))
    x = torch.randn(6, 5, requires_grad=True)

    reconstruction, loss, codes = model(x)

    z = model.encoder(x)
    chosen = torch.stack([model.codebooks[level][codes[:, level]] for level in range(4)])
    torch.testing.assert_close(reconstruction, model.decoder(chosen.sum(0)), rtol=1e-4, atol=1e-5)
    left = z[None] - torch.cat([torch.zeros(1, 6, 3), chosen.cumsum(0)])  # what each level is given
    # Codebook and commitment terms are equal in value: 1.25 times the mean squared distance of each level.
    torch.testing.assert_close(loss, 1.25 * left[1:].square().mean(dim=(1, 2)).sum(), rtol=1e-4, atol=1e-5)
    for level in range(4):
        distances = (left[level][:, None] - model.codebooks[level]).square().sum(-1)
        assert torch.equal(codes[:, level], distances.argmin(1))
    (through,) = torch.autograd.grad(reconstruction.sum(), x, retain_graph=True)
    straight = torch.autograd.grad(model.decoder(z + (chosen.sum(0) - z).detach()).sum(), x)[0]
    torch.testing.assert_close(through, straight)
    (books,) = torch.autograd.grad(loss, model.codebooks, retain_graph=True)
    assert torch.count_nonzero(books.abs().sum(-1)) == sum(len(set(codes[:, level].tolist())) for level in range(4))


DATA = clustered()


@pytest.fixture(scope="module")
def fitted() -> tuple[Codec, list[float]]:
    return quantised(DATA, steps=400)


def reconstruction_error(codec: Codec) -> float:
    """Mean squared error of the best linear read-out of the quantised latent."""
    codes, _ = codec.quantise(codec.project(DATA))
    latent = sum(codec.codebooks[level][codes[:, level]] for level in range(4))
    features = np.column_stack([latent, np.ones(len(DATA))])
    weights, *_ = np.linalg.lstsq(features, DATA, rcond=None)
    return float(np.square(features @ weights - DATA).mean())


def test_fitting_brings_the_loss_down(fitted: tuple[Codec, list[float]]) -> None:
    _, losses = fitted

    assert len(losses) == 400
    assert np.mean(losses[-10:]) < 0.6 * losses[0]


def test_the_items_can_be_reconstructed_better_than_at_the_start(fitted: tuple[Codec, list[float]]) -> None:
    start, _ = quantised(DATA, steps=0)

    assert reconstruction_error(fitted[0]) < 0.85 * reconstruction_error(start)


def test_the_quantised_latent_stays_near_the_latent(fitted: tuple[Codec, list[float]]) -> None:
    codec, _ = fitted

    latent = codec.project(DATA)
    codes, _ = codec.quantise(latent)
    left = latent - sum(codec.codebooks[level][codes[:, level]] for level in range(4))

    assert np.linalg.norm(left) < 0.1 * np.linalg.norm(latent - latent.mean(0))


def test_most_codes_of_the_first_level_are_used_and_most_items_differ(fitted: tuple[Codec, list[float]]) -> None:
    codec, _ = fitted

    codes, _ = codec.quantise(codec.project(DATA))

    assert len(np.unique(codes[:, 0])) > 128
    assert len(np.unique(codes, axis=0)) > 0.9 * len(DATA)


def test_the_first_code_tells_clusters_apart_and_new_items_fall_into_their_own() -> None:
    data, later = clustered(items=400, clusters=20), clustered(items=400, clusters=20) + np.float32(1e-3)
    codec, _ = quantised(data, steps=300)

    old, _ = codec.quantise(codec.project(data))
    new, _ = codec.quantise(codec.project(later))

    owners: dict[int, set[int]] = {}
    for row, code in enumerate(old[:, 0].tolist()):
        owners.setdefault(code, set()).add(row % 20)
    assert np.mean([len(clusters) == 1 for clusters in owners.values()]) > 0.9
    assert np.mean([row % 20 in owners.get(code, ()) for row, code in enumerate(new[:, 0].tolist())]) > 0.9


def test_the_layers_are_the_encoder_for_unscaled_embeddings() -> None:
    data = clustered(items=40, clusters=10)

    layers, books = fit_rqvae(data, hidden=(12, 6), latent=4, steps=0, seed=3)

    torch.manual_seed(3)
    model = RqVae(16, (12, 6), 4)
    expected = model.encoder(torch.from_numpy(data) * 4).detach().numpy()  # 4: the root of 16 dimensions
    nothing = np.empty(0, dtype=np.float32)
    codec = Codec(TfidfEncoder((), nothing, np.empty((0, 0), dtype=np.float32)), layers, books, "rqvae")
    np.testing.assert_allclose(codec.project(data), expected, atol=1e-5)
    assert [weight.shape for weight, _ in layers] == [(12, 16), (6, 12), (4, 6)]
    assert all(part.dtype == np.float32 for layer in layers for part in layer)
    assert (books.shape, books.dtype) == ((4, 256, 4), np.float32)
    assert sum(isinstance(layer, nn.Linear) for layer in model.decoder) == 3


@pytest.mark.parametrize("batch_size", [1_024, 64])
def test_one_seed_gives_one_result_bit_for_bit(batch_size: int) -> None:
    data = clustered(items=200, clusters=20)
    first, losses = quantised(data, steps=60, seed=7, batch_size=batch_size)
    second, again = quantised(data, steps=60, seed=7, batch_size=batch_size)
    other, _ = quantised(data, steps=60, seed=8, batch_size=batch_size)

    assert losses == again
    np.testing.assert_array_equal(first.codebooks, second.codebooks)
    np.testing.assert_array_equal(first.project(data), second.project(data))
    assert not np.array_equal(first.codebooks, other.codebooks)


@pytest.mark.parametrize("items", [1, 2, 5])
def test_a_few_items_are_fitted_without_trouble_and_told_apart(items: int) -> None:
    data = clustered(items=items, clusters=items)

    codec, _ = quantised(data, steps=60)

    codes, _ = codec.quantise(codec.project(data))
    assert np.isfinite(codec.codebooks).all()
    assert len(np.unique(codes, axis=0)) == items


def test_the_embeddings_stay_as_they_were() -> None:
    data = clustered(items=30, clusters=3)
    before = data.copy()

    quantised(data, steps=5)

    assert np.array_equal(data, before)
