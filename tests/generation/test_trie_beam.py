"""The beams in NumPy against all paths, counted out, and against the torch engine's step."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog.trie import CODES, LEVELS, as_codes, build_trie
from service.generation.beam import Beams, expand, pruned, trie_tensors
from service.generation.trie_beam import dead_children, root

CPU = torch.device("cpu")
SMALL = as_codes([[0, 0, 0, 0], [0, 0, 0, 1], [0, 2, 0, 0], [5, 0, 0, 0]])


def level(*known: tuple[int, float], beams: int = 1) -> np.ndarray:
    """Log-probabilities [beams, 256]: -9 but for the codes that are named."""
    logp = np.full((beams, CODES), -9.0, dtype=np.float32)
    for code, value in known:
        logp[:, code] = value
    return logp


def test_the_better_code_comes_first_and_scores_add_up() -> None:
    trie = build_trie(SMALL)

    beam = root(trie).grow(trie, level((0, -2.0), (5, -1.0)), np.empty(0, np.int64), 10)
    np.testing.assert_array_equal(beam.codes, [[5], [0]])
    beam = beam.grow(trie, level((0, -1.5), (2, -0.5), beams=2), np.empty(0, np.int64), 2)

    np.testing.assert_array_equal(beam.codes, [[5, 0], [0, 2]])
    np.testing.assert_array_equal(beam.scores, np.float32([-2.5, -2.5]))  # equal: the better beam's child is first


def test_what_is_excluded_whole_is_left_out_at_each_level() -> None:
    trie = build_trie(SMALL)
    dead = dead_children(trie, np.array([0, 3]))  # one of two below [0, 0, 0]; all below [5]

    beam = root(trie)
    for depth in range(LEVELS):
        beam = beam.grow(trie, level(beams=len(beam)), dead[depth], 10)

    np.testing.assert_array_equal(beam.nodes, [1, 2])


def test_over_an_empty_catalogue_there_are_no_beams() -> None:
    trie = build_trie(as_codes([]))
    beam = root(trie)
    for depth in range(LEVELS):
        beam = beam.grow(trie, level(beams=len(beam)), dead_children(trie, np.empty(0, np.int64))[depth], 10)
    assert (len(beam), beam.depth) == (0, LEVELS)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 80), st.integers(1, 90), st.floats(0, 1), st.integers(0, 10_000))
def test_every_step_keeps_what_the_torch_engine_keeps(items: int, width: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    trie = build_trie(random.integers(0, [6, 5, 4, 3], size=(items, LEVELS)).astype(np.int16))
    excluded = np.flatnonzero(random.random(trie.leaves) < share).astype(np.int64)
    dead, tensors = dead_children(trie, excluded), trie_tensors(trie, CPU)
    theirs_dead = pruned([excluded], trie, CPU)
    first = torch.zeros(1, 1, dtype=torch.long)
    theirs = Beams(first, first, torch.zeros(1, 1))

    ours = root(trie)
    for depth in range(LEVELS):
        logp = random.normal(size=(1, theirs.nodes.shape[1], CODES)).astype(np.float32)
        ours = ours.grow(trie, logp[0, : len(ours)], dead[depth], width)
        theirs = expand(tensors, depth, theirs, torch.from_numpy(logp), theirs_dead[depth], width)

        live = torch.isfinite(theirs.scores[0])
        np.testing.assert_array_equal(ours.nodes, theirs.nodes[0][live].numpy())
        np.testing.assert_array_equal(ours.scores, theirs.scores[0][live].numpy())
    np.testing.assert_array_equal(ours.codes, trie.leaf_codes[ours.nodes])
