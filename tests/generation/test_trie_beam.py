"""The beams in NumPy against all paths, counted out, and against the torch engine's step."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog.trie import CODES, LEVELS, as_codes, build_trie
from service.generation.backbone import Backbone
from service.generation.beam import Beams, choice, expand, pruned, trie_tensors
from service.generation.engine import GenerationRequest
from service.generation.torch_engine import TorchModel
from service.generation.trie_beam import TrieBeam, dead_children, root
from service.generation.vllm_engine import VllmModel
from tests.models import tiny_backbone

CPU = torch.device("cpu")
NOTHING = np.empty(0, np.int64)
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


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 80), st.integers(1, 90), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1e6]), st.integers(0, 10_000)
)
def test_a_choice_and_a_penalty_keep_what_the_torch_engine_keeps(
    items: int, width: int, share: float, penalty: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    trie = build_trie(random.integers(0, [6, 5, 4, 3], size=(items, LEVELS)).astype(np.int16))
    within = np.flatnonzero(random.random(trie.leaves) < share).astype(np.int64)
    nothing = np.empty(0, np.int64)
    dead, live, tensors = dead_children(trie, nothing), trie.live_nodes(within), trie_tensors(trie, CPU)
    wanted = choice([within], [penalty], trie, CPU)
    first = torch.zeros(1, 1, dtype=torch.long)
    theirs = Beams(first, first, torch.zeros(1, 1))

    ours = root(trie)
    for depth in range(LEVELS):
        logp = random.normal(size=(1, theirs.nodes.shape[1], CODES)).astype(np.float32)
        ours = ours.grow(trie, logp[0, : len(ours)], dead[depth], width, live[depth], penalty)
        theirs = expand(tensors, depth, theirs, torch.from_numpy(logp), None, width, wanted)

        kept = torch.isfinite(theirs.scores[0])
        np.testing.assert_array_equal(ours.nodes, theirs.nodes[0][kept].numpy())
        np.testing.assert_array_equal(ours.scores, theirs.scores[0][kept].numpy())


class ByFullPasses(VllmModel):
    """The engine's loop over levels, where the codes' probabilities come from full forward passes and not from vLLM."""

    def __init__(self, backbone: Backbone, least_beams: int) -> None:
        self.base_id, self.adapter_version = "b", None
        self._backbone, self._least_beams = backbone, least_beams
        self._base = SimpleNamespace(prompt=backbone.prompt)  # type: ignore[assignment]  # all that is read of it

    def _next_codes(self, prompts: Sequence[list[int]], beams: Sequence[TrieBeam], level: int) -> np.ndarray:
        offsets = self._backbone.prompt.offsets[:level]
        rows = []
        for prompt, beam in zip(prompts, beams, strict=True):
            for tokens in (beam.codes + offsets).tolist():
                hidden = self._backbone.decoder(torch.tensor([prompt + tokens]), use_cache=False).last_hidden_state
                logits = self._backbone.level_logits(hidden[0, -1], level).float()
                rows.append(torch.log_softmax(logits, dim=-1).numpy())
        return np.array(rows, dtype=np.float32).reshape(-1, CODES)


def test_the_vllm_engines_loop_gives_what_the_torch_engine_gives_for_every_kind_of_request() -> None:
    backbone = tiny_backbone()
    random = np.random.default_rng(2)
    trie = build_trie(random.integers(0, [6, 5, 4, 3], size=(60, LEVELS)).astype(np.int16))
    past = random.integers(0, CODES, size=(3, LEVELS)).astype(np.int16)
    within = np.arange(0, trie.leaves, 2, dtype=np.int64)
    requests = [
        GenerationRequest(past, 10, NOTHING),
        GenerationRequest(past, 10, np.arange(5)),
        GenerationRequest(past, 10, within[::3], within),
        GenerationRequest(past, 10, NOTHING, None, 0.5),
        GenerationRequest(past, 10, np.arange(5), None, 1e6),
        GenerationRequest(past, 10, NOTHING, within, 0.5),
        GenerationRequest(past, 10, NOTHING, NOTHING),
    ]

    ours = ByFullPasses(backbone, 10).generate(requests, trie)

    for found, theirs in zip(ours, TorchModel(backbone, "b", None, 10).generate(requests, trie), strict=True):
        np.testing.assert_array_equal(found.leaves, theirs.leaves)
        np.testing.assert_allclose(found.scores, theirs.scores, atol=1e-4)
