"""A frozen codec: the same codes after every load, new items among the old, and damage that is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from service.catalog.semantic_ids import (
    Codec,
    Codes,
    TfidfEncoder,
    load_codec,
    make_vectorizer,
    spread,
    squared_distances,
    unit_rows,
)
from service.errors import ArtifactError

TERMS = ("alien", "café", "dune", "space")


def encoder() -> TfidfEncoder:
    """Four words, each a direction of its own."""
    return TfidfEncoder(TERMS, np.ones(4, dtype=np.float32), np.eye(4, dtype=np.float32))


def random_codec(seed: int = 0, layers: int = 2) -> Codec:
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    mlp = tuple((normal(6, 4 if i == 0 else 6), normal(6)) for i in range(layers))
    return Codec(encoder(), mlp, normal(4, 256, 6 if layers else 4), "rqvae" if layers else "rqkmeans")


def plane_codec() -> Codec:
    """Codebooks in the plane of words, so that codes are found with a pencil; unused codes lie far off."""
    books = np.full((4, 256, 4), 100, dtype=np.float32)
    books[0, :2] = [[1, 0, 0, 0], [0, 0, 1, 0]]  # alien, dune
    books[1, :2] = [[0, 0, 0, 0], [-0.3, 0, 0, 0.7]]
    books[2, 0] = books[3, 0] = 0
    books[3, 1] = [0, 0, 0, 0.5]
    return Codec(encoder(), (), books, "rqkmeans")


def test_a_text_is_the_words_it_holds_scaled_to_length_one() -> None:
    embeddings = encoder().encode(["Dune", "alien SPACE", "dune dune unknown", "unknown", ""])

    half = np.sqrt(0.5)
    expected = [[0, 0, 1, 0], [half, 0, 0, half], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(embeddings, expected, atol=1e-7)
    assert embeddings.dtype == np.float32


def test_no_texts_give_no_codes_and_an_empty_text_gets_some() -> None:
    codec = random_codec()

    assert codec.latent([]).shape == (0, 6)
    assert codec.quantise(codec.latent([]))[0].shape == (0, 4)
    assert codec.assign([], []) == []
    (codes,) = codec.assign([""], [])
    assert all(0 <= code < 256 for code in codes)


def test_zero_rows_stay_zero_when_rows_are_scaled() -> None:
    np.testing.assert_array_equal(
        unit_rows(np.array([[3, 4], [0, 0]], dtype=np.float32)), np.float32([[0.6, 0.8], [0, 0]])
    )


def test_digits_and_pairs_of_words_are_terms() -> None:
    vectorizer = make_vectorizer()
    vectorizer.fit(["Alien 3"])

    assert sorted(vectorizer.vocabulary_) == ["3", "alien", "alien 3"]


def test_the_encoder_is_its_layers_with_relu_between_but_not_behind() -> None:
    codec = Codec(
        encoder(),
        (
            (np.float32([[1, 0, 0, 0], [-1, 0, 0, 0]]), np.float32([0, 0.5])),
            (np.float32([[1, 1]]), np.float32([-3])),
        ),
        np.zeros((4, 256, 1), dtype=np.float32),
        "rqvae",
    )

    # alien: relu(1, -0.5) = (1, 0) -> 1 - 3; dune: relu(0, 0.5) -> 0.5 - 3
    assert codec.latent(["alien", "dune"]).tolist() == [[-2.0], [-2.5]]


def test_each_level_takes_the_code_nearest_to_what_is_left_over() -> None:
    codes, distances = plane_codec().quantise(plane_codec().latent(["alien", "dune", "alien space"]))

    assert codes.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert distances.shape == (3, 256)
    np.testing.assert_allclose(distances[0, :2], [0, 0.25], atol=1e-6)


def test_texts_that_share_most_words_share_the_first_codes() -> None:
    alien, alien_space, dune, dune_space = plane_codec().assign(["alien", "alien space", "dune", "dune dune space"], [])

    assert alien[0] == alien_space[0] != dune[0] == dune_space[0]


@pytest.mark.parametrize("layers", [0, 2])
def test_quantising_is_greedy_nearest_neighbour_level_by_level(layers: int) -> None:
    codec = random_codec(layers=layers)
    points = np.random.default_rng(1).normal(size=(20, codec.codebooks.shape[2])).astype(np.float32)

    codes, distances = codec.quantise(points)

    for point, own, near in zip(points.astype(np.float64), codes, distances, strict=True):
        for level in range(4):
            exact = ((point - codec.codebooks[level]) ** 2).sum(axis=1)
            assert own[level] == exact.argmin()
            if level == 3:
                np.testing.assert_allclose(near, exact, rtol=1e-3, atol=1e-4)
            point = point - codec.codebooks[level][own[level]]


def test_squared_distances_by_pencil() -> None:
    points, centres = np.float32([[0, 0], [3, 4]]), np.float32([[0, 0], [0, 4], [3, 0]])

    assert squared_distances(points, centres).tolist() == [[0, 16, 9], [25, 9, 16]]


@pytest.mark.parametrize("layers", [0, 2])
def test_a_loaded_codec_gives_the_same_codes_and_numbers_bit_for_bit(tmp_path: Path, layers: int) -> None:
    codec = random_codec(layers=layers)
    texts = ["alien", "café dune", "space", "", "alien space dune", "Ünknown"]

    codec.save(tmp_path / "codec")
    loaded = load_codec(tmp_path / "codec")

    assert loaded.kind == codec.kind
    assert loaded.text_encoder.config() == codec.text_encoder.config()
    np.testing.assert_array_equal(loaded.latent(texts), codec.latent(texts))
    np.testing.assert_array_equal(loaded.quantise(loaded.latent(texts))[0], codec.quantise(codec.latent(texts))[0])
    assert loaded.assign(texts, []) == codec.assign(texts, [])


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    random_codec().save(tmp_path / "one")
    load_codec(tmp_path / "one").save(tmp_path / "two")

    for name in ("codec.json", "codec.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_words_are_written_as_utf8(tmp_path: Path) -> None:
    random_codec().save(tmp_path)

    assert "café" in (tmp_path / "codec.json").read_bytes().decode("utf-8")


def test_a_new_item_takes_the_nearest_free_code_of_the_last_level() -> None:
    codec = plane_codec()

    assert codec.assign(["alien"], []) == [(0, 0, 0, 0)]
    assert codec.assign(["alien"], [(0, 0, 0, 0)]) == [(0, 0, 0, 1)]
    assert codec.assign(["alien"], [(0, 0, 0, 0), (0, 0, 0, 1)]) == [(0, 0, 0, 2)]
    assert codec.assign(["alien"], [(1, 0, 0, 0)]) == [(0, 0, 0, 0)]  # taken under another prefix


def test_new_items_of_one_call_are_unlike_each_other_too() -> None:
    assert plane_codec().assign(["alien", "dune", "alien"], []) == [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1)]


def test_an_item_shares_its_nearest_semantic_id_once_the_last_level_is_full() -> None:
    full: list[Codes] = [(0, 0, 0, code) for code in range(256)]

    assert plane_codec().assign(["alien", "dune"], full) == [(0, 0, 0, 0), (1, 0, 0, 0)]
    assert plane_codec().assign(["alien"], full[:200] + full[201:]) == [(0, 0, 0, 200)]


def test_two_hundred_and_fifty_seven_equal_texts_take_every_code_before_one_is_shared() -> None:
    codes = plane_codec().assign(["alien"] * 257, [])

    assert {c[:3] for c in codes} == {(0, 0, 0)}
    assert sorted(c[3] for c in codes[:256]) == list(range(256))
    assert codes[256] == (0, 0, 0, 0)


def test_spreading_goes_by_distance_then_by_code() -> None:
    distances = np.full((3, 256), 9, dtype=np.float32)
    distances[:, [4, 7, 8]] = [1, 2, 2]

    spread_codes = spread(np.int16([[5, 5, 5, 4]] * 3), distances, set())

    assert spread_codes == [(5, 5, 5, 4), (5, 5, 5, 7), (5, 5, 5, 8)]


def test_what_is_taken_is_not_changed_by_assigning() -> None:
    taken: set[Codes] = {(0, 0, 0, 0)}

    plane_codec().assign(["alien"], taken)

    assert taken == {(0, 0, 0, 0)}


def corrupted(folder: Path, file: str, change: bytes | None) -> None:
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(change)


@pytest.mark.parametrize("file", ["codec.json", "codec.safetensors"])
@pytest.mark.parametrize(
    "change",
    [None, b"", b"{", b"[]", b'"text"', b"\xff" * 100, b"\x00" * 100],
    ids=["missing", "empty", "cut off", "a list", "a text", "ones", "zeros"],
)
def test_a_missing_or_corrupt_file_is_refused(tmp_path: Path, file: str, change: bytes | None) -> None:
    random_codec().save(tmp_path)
    corrupted(tmp_path, file, change)

    with pytest.raises(ArtifactError):
        load_codec(tmp_path)


def test_a_truncated_tensor_file_is_refused(tmp_path: Path) -> None:
    random_codec().save(tmp_path)
    whole = (tmp_path / "codec.safetensors").read_bytes()
    corrupted(tmp_path, "codec.safetensors", whole[: len(whole) // 2])

    with pytest.raises(ArtifactError, match="build the base again"):
        load_codec(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"levels": 3},
        {"codes": 512},
        {"layers": 3},
        {"layers": "two"},
        {"text_encoder": {"kind": "word2vec"}},
        {"text_encoder": {"kind": "tfidf"}},
        {"text_encoder": "tfidf"},
    ],
    ids=str,
)
def test_a_codec_that_is_not_what_it_says_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    random_codec().save(tmp_path)
    config = json.loads((tmp_path / "codec.json").read_text(encoding="utf-8"))
    (tmp_path / "codec.json").write_text(json.dumps(config | change), encoding="utf-8")

    with pytest.raises(ArtifactError):
        load_codec(tmp_path)


@pytest.mark.parametrize("key", ["format", "kind", "layers", "text_encoder"])
def test_a_codec_with_a_missing_key_is_refused(tmp_path: Path, key: str) -> None:
    random_codec().save(tmp_path)
    config = json.loads((tmp_path / "codec.json").read_text(encoding="utf-8"))
    del config[key]
    (tmp_path / "codec.json").write_text(json.dumps(config), encoding="utf-8")

    with pytest.raises(ArtifactError, match="build the base again"):
        load_codec(tmp_path)
