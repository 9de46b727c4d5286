"""How long one user's top ten takes: transformers' generate(), our engine user by user, and our engine in batches.

All three search the same random Llama over the same catalogue for the same users, in one process, in turns, so that
whatever else the machine does falls on all of them. That they return the same lists is checked, not assumed.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from service.catalog.index import CatalogueIndex, IndexedItem
from service.catalog.trie import CODES, LEVELS, pack
from service.generation.backbone import Backbone
from service.generation.engine import GenerationRequest
from service.generation.torch_engine import TorchModel
from trainer.evaluation import CPU_BATCH, DEPTH, model_ranks
from trainer.examples import Case
from trainer.generate_peer import GeneratePeer
from trainer.tiny import TinyConfig, new_tiny
from trainer.turns import in_turns

PEER_USERS, SINGLE_USERS = 16, 64  # the slow ways are timed on the first users only
BATCH = CPU_BATCH  # though model_ranks also sorts users by the length of their history
SPREAD = 4.0  # random weights times this: scores far enough apart that no order hangs on rounding


@dataclass(frozen=True, slots=True)
class BenchRow:
    """milliseconds: median over repeats of wall time per user. fewest, most: over the repeats.

    compared: users whose list was compared with the batched one; same: those with the same items in the same order.
    """

    way: str
    users: int
    milliseconds: float
    fewest: float
    most: float
    compared: int
    same: int


def bench_evaluation(
    hidden: int, layers: int, users: int, items: int, seed: int, *, repeats: int = 5
) -> list[BenchRow]:
    """Rows: generate() one user at a time, the engine one user at a time, the engine batched.

    hidden, layers: of the Llama (8 heads, float32). users: at least 64, with 3 to 20 past items each, all excluded.
    items: of the catalogue, each with a semantic ID of its own.
    """
    backbone = random_backbone(TinyConfig(hidden=hidden, layers=layers), seed)
    random = np.random.default_rng(seed)
    index = random_catalogue(items, random)
    histories = [random.integers(0, items, size=random.integers(3, 21)) for _ in range(max(users, SINGLE_USERS))]
    targets = random.integers(0, items, size=len(histories)).tolist()
    cases = [Case(str(i), h, t, np.unique(h)) for i, (h, t) in enumerate(zip(histories, targets, strict=True))]
    popularity = random.random(items)
    trie = index.trie
    requests = [GenerationRequest(index.codes[case.history], DEPTH, trie.excluded_leaves(case.seen)) for case in cases]
    model = TorchModel(backbone, "bench", None, least_beams=DEPTH)
    peer = GeneratePeer(backbone, trie, DEPTH)

    parts = [requests[first : first + BATCH] for first in range(0, len(requests), BATCH)]
    batched = [found.leaves.tolist() for part in parts for found in model.generate(part, trie)]
    singly = [model.generate([request], trie)[0].leaves.tolist() for request in requests]
    peers = [peer.leaves([request], one_score=True)[0] for request in requests[:PEER_USERS]]

    ways: list[tuple[str, int, Callable[[], object], Sequence[list[int]]]] = [
        (
            "transformers.generate, one user at a time",
            PEER_USERS,
            lambda: [peer.leaves([request]) for request in requests[:PEER_USERS]],
            peers,
        ),
        (
            "engine, one user at a time",
            SINGLE_USERS,
            lambda: model_ranks(model, cases[:SINGLE_USERS], index, popularity, batch_size=1),
            singly,
        ),
        ("engine, batched", len(cases), lambda: model_ranks(model, cases, index, popularity), batched),
    ]
    times = in_turns([run for _, _, run, _ in ways], repeats)
    seconds = [[one / count for one in own] for (_, count, _, _), own in zip(ways, times, strict=True)]
    return [
        BenchRow(
            way,
            count,
            1000 * statistics.median(own),
            1000 * min(own),
            1000 * max(own),
            len(lists),
            sum(one == other for one, other in zip(lists, batched, strict=False)),
        )
        for (way, count, _, lists), own in zip(ways, seconds, strict=True)
    ]


def random_backbone(config: TinyConfig, seed: int) -> Backbone:
    """A Llama with random weights that tells items apart; frozen."""
    backbone = new_tiny(config, seed)
    backbone.model.requires_grad_(False)
    for parameter in backbone.model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(SPREAD)
    backbone.model.train(False)
    return backbone


def random_catalogue(items: int, random: np.random.Generator) -> CatalogueIndex:
    """`items` different semantic IDs whose first code is skewed, as a fitted codebook's is, and whose last is small."""
    drawn = random.integers(0, CODES, size=(4 * items, LEVELS))
    drawn[:, 0] = drawn[:, 0] ** 2 // CODES
    drawn[:, 3] %= 3
    _, first = np.unique(pack(drawn.astype(np.int16)), return_index=True)
    codes = drawn[np.sort(first)[:items]].tolist()
    return CatalogueIndex(
        tuple(IndexedItem(str(row), str(row), (), True, (a, b, c, d)) for row, (a, b, c, d) in enumerate(codes)),
        1,
        "bench",
    )
