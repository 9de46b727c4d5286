"""Residual k-means: what a level leaves over is what the next one clusters."""

from itertools import pairwise

import numpy as np

from service.catalog.semantic_ids import Codec, TfidfEncoder
from trainer.tokenizer.rqkmeans import fit_rqkmeans

UNUSED = 1e6


def codec(books: np.ndarray) -> Codec:
    nothing = np.empty(0, dtype=np.float32)
    return Codec(TfidfEncoder((), nothing, np.empty((0, 0), dtype=np.float32)), (), books, "rqkmeans")


def used(book: np.ndarray) -> np.ndarray:
    return book[(book < UNUSED / 2).all(axis=1)]


def error(points: np.ndarray, books: np.ndarray, levels: int) -> float:
    codes, _ = codec(books).quantise(points)
    return float(np.linalg.norm(points - sum(books[level][codes[:, level]] for level in range(levels)), axis=1).mean())


def clustered(items: int, clusters: int, seed: int = 0, dimensions: int = 8) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, dimensions))
    return (centres[np.arange(items) % clusters] + 0.05 * random.normal(size=(items, dimensions))).astype(np.float32)


def test_fewer_items_than_codes_get_a_centre_each_and_the_rest_lies_out_of_reach() -> None:
    points = np.float32([[0, 0], [1, 0], [0, 4]])

    books = fit_rqkmeans(points, seed=0)

    assert books.shape == (4, 256, 2)
    assert books.dtype == np.float32
    assert sorted(used(books[0]).tolist()) == sorted(points.tolist())
    for level in (1, 2, 3):  # nothing is left over
        assert used(books[level]).tolist() == [[0, 0]]
    codes, _ = codec(books).quantise(points)
    assert len(np.unique(codes[:, 0])) == 3


def test_one_item_and_equal_items_are_one_centre() -> None:
    for points in (np.float32([[3, 4]]), np.float32([[3, 4]] * 7)):
        books = fit_rqkmeans(points, seed=0)

        assert used(books[0]).tolist() == [[3, 4]]
        assert codec(books).quantise(points)[0].tolist() == [[0, 0, 0, 0]] * len(points)


def test_rounding_errors_are_no_clusters() -> None:
    points = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    noisy = np.concatenate([points, points * np.float32(1 + 3e-7)])

    books = fit_rqkmeans(noisy, seed=0)

    assert [len(used(book)) for book in books[1:]] == [1, 1, 1]


def test_each_level_brings_the_reconstruction_nearer() -> None:
    points = np.random.default_rng(1).normal(size=(2_000, 8)).astype(np.float32)

    books = fit_rqkmeans(points, seed=0)

    errors = [error(points, books, levels) for levels in range(5)]
    assert all(after < 0.7 * before for before, after in pairwise(errors))


def test_clusters_are_told_apart_by_the_first_code() -> None:
    points = clustered(items=600, clusters=256)

    codes, _ = codec(fit_rqkmeans(points, seed=0)).quantise(points)

    assert len(np.unique(codes[:, 0])) > 200


def test_one_seed_gives_one_result() -> None:
    points = clustered(items=400, clusters=40)

    assert np.array_equal(fit_rqkmeans(points, seed=5), fit_rqkmeans(points, seed=5))
    assert not np.array_equal(fit_rqkmeans(points, seed=5), fit_rqkmeans(points, seed=6))


def test_the_embeddings_stay_as_they_were() -> None:
    points = clustered(items=30, clusters=3)
    before = points.copy()

    fit_rqkmeans(points, seed=0)

    assert np.array_equal(points, before)
