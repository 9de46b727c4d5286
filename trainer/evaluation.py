"""Hit and NDCG at 5 and 10 of anything that ranks items, user by user."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from service.catalog.index import CatalogueIndex
from service.generation.backbone import Backbone
from service.generation.engine import GenerationRequest
from service.generation.torch_engine import TorchModel
from service.recommend.ranking import Float64, rank_leaves, rank_popular
from trainer.examples import Case, TrainingSequence
from trainer.fit import sequence_loss
from trainer.group import ALONE, Group

DEPTH = 10
CPU_BATCH, GPU_BATCH = 64, 256
"""Cases in one search, and half of those in one pass of a loss. A GPU launches as many kernels for few as for many."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Means over `users`, each with one relevant item; so NDCG@k = 1 / log2(1 + rank) within the first k, else 0."""

    users: int
    hit_5: float
    hit_10: float
    ndcg_5: float
    ndcg_10: float

    def as_dict(self) -> dict[str, float]:
        return {"hit@5": self.hit_5, "hit@10": self.hit_10, "ndcg@5": self.ndcg_5, "ndcg@10": self.ndcg_10}


def metrics(ranks: NDArray[np.int64]) -> Metrics:
    """From 1-based ranks (0: not among the first 10), int64 [users]."""
    if not len(ranks):
        return Metrics(0, 0.0, 0.0, 0.0, 0.0)
    hit_5, hit_10 = (float(np.mean((ranks > 0) & (ranks <= k))) for k in (5, 10))
    return Metrics(len(ranks), hit_5, hit_10, float(ndcg(ranks, 5).mean()), float(ndcg(ranks, 10).mean()))


GROUPS = ("known_users", "new_users", "known_items", "new_items")


def cold_and_known(
    ranks: Mapping[str, NDArray[np.int64]], cases: Sequence[Case], popularity: Float64
) -> dict[str, dict[str, Metrics]]:
    """Group -> subject -> metrics, where what is new to the model is told from what it could have learnt.

    ranks: subject -> int64 [cases]. A user is new who did nothing before the window, an item whose popularity as of
    then (float64 [rows]) is 0: nobody had taken it. Nothing is ranked again.
    """
    new_user = np.array([case.earlier == 0 for case in cases], dtype=np.bool_)
    new_item = np.array([popularity[case.target] == 0 for case in cases], dtype=np.bool_)
    masks = dict(zip(GROUPS, (~new_user, new_user, ~new_item, new_item), strict=True))
    return {group: {subject: metrics(own[mask]) for subject, own in ranks.items()} for group, mask in masks.items()}


def user_means(ranks: NDArray[np.int64], cases: Sequence[Case]) -> Metrics:
    """Metrics of several cases a user: averaged over each user's cases, then over users."""
    users, place = np.unique([case.user_id for case in cases], return_inverse=True)
    if not len(users):
        return metrics(ranks[:0])
    share = 1.0 / np.bincount(place)[place] / len(users)
    hits = ((ranks > 0) & (ranks <= k) for k in (5, 10))
    hit_5, hit_10 = (float((hit * share).sum()) for hit in hits)
    return Metrics(len(users), hit_5, hit_10, *(float((ndcg(ranks, k) * share).sum()) for k in (5, 10)))


def by_user(scores: Float64, users: Sequence[str]) -> Float64:
    """float64 [people, columns], in order of their ids: the mean of each one's rows of scores, float64 [rows, columns].

    users: whose row it is.
    """
    people, place = np.unique(users, return_inverse=True)
    sums = np.zeros((len(people), scores.shape[1]))
    np.add.at(sums, place, scores)
    return sums / np.bincount(place, minlength=len(people))[:, None]


def user_ndcg(ranks: NDArray[np.int64], cases: Sequence[Case]) -> Float64:
    """float64 [users]: each user's mean NDCG@10 over their cases, users in order of their ids."""
    return by_user(ndcg(ranks, DEPTH)[:, None], [case.user_id for case in cases])[:, 0]


def ndcg(ranks: NDArray[np.int64], k: int) -> Float64:
    """float64 [users], each user's NDCG@k."""
    gain = 1 / np.log2(1 + np.maximum(ranks, 1).astype(np.float64))
    return np.where((ranks > 0) & (ranks <= k), gain, 0.0)


def model_ranks(
    model: TorchModel,
    cases: Sequence[Case],
    index: CatalogueIndex,
    popularity: Float64,
    *,
    batch_size: int | None = None,
    group: Group = ALONE,
    on_batch: Callable[[], object] = lambda: None,
) -> NDArray[np.int64]:
    """Rank of each case's target in the list that the service would return, 0 beyond 10. int64 [cases].

    batch_size: cases in one search; None: as many as keep the device busy. group: each of its processes asks about its
    share of the cases. on_batch: called after each batch.
    """
    batch_size = batch_size or _together(model.backbone.device)
    if group.size > 1:
        found = np.zeros(len(cases))
        found[group.rank :: group.size] = model_ranks(
            model, group.share(cases), index, popularity, batch_size=batch_size, on_batch=on_batch
        )
        return np.array(group.sums(found.tolist()), dtype=np.int64)
    ranks = np.zeros(len(cases), dtype=np.int64)
    order = sorted(range(len(cases)), key=lambda i: len(cases[i].history))  # like lengths together: little padding
    trie = index.trie
    for first in range(0, len(order), batch_size):
        part = order[first : first + batch_size]
        requests = [
            GenerationRequest(
                history=index.codes[index.with_codes(cases[i].history)],
                limit=DEPTH,
                excluded=trie.excluded_leaves(cases[i].seen),
            )
            for i in part
        ]
        for i, generated in zip(part, model.generate(requests, trie), strict=True):
            ranked = rank_leaves(generated, trie, popularity, cases[i].seen, DEPTH)
            ranks[i] = _rank(ranked.rows, cases[i].target)
        on_batch()
    return ranks


def popularity_ranks(cases: Sequence[Case], index: CatalogueIndex, popularity: Float64) -> NDArray[np.int64]:
    """Rank of each case's target by popularity without seen items, 0 beyond 10. int64 [cases]."""
    # Seen items push at most their own number out of the front, so the catalogue is ranked once and not for each case.
    most = max((len(case.seen) for case in cases), default=0)
    front = rank_popular(popularity, index.available, np.empty(0, np.int64), DEPTH + most).rows
    ranks = np.zeros(len(cases), dtype=np.int64)
    for i, case in enumerate(cases):
        own = front[: DEPTH + len(case.seen)]
        ranks[i] = _rank(own[~np.isin(own, case.seen)][:DEPTH], case.target)
    return ranks


def _together(device: torch.device) -> int:
    return GPU_BATCH if device.type == "cuda" else CPU_BATCH


def _rank(rows: NDArray[np.int64], target: int) -> int:
    places = np.flatnonzero(rows == target)
    return int(places[0]) + 1 if len(places) else 0


@torch.no_grad()
def validation_loss(
    backbone: Backbone,
    cases: Sequence[Case],
    codes: NDArray[np.int16],
    *,
    batch_size: int | None = None,
    low_precision: bool = False,
    group: Group = ALONE,
    on_batch: Callable[[], object] = lambda: None,
) -> float:
    """Mean over cases of the target's cross-entropy, nats per item: minus the score that the service would give it.

    Far less noisy on few users than a rank metric (paper: the best epoch is taken by validation loss).
    batch_size: cases in one pass; None: as many as keep the device busy.
    low_precision: products in bfloat16, as in training: the mean moves by some thousandths of a nat, which can swap two
    passes that are about equally good. group: each rank asks about its share of the cases. on_batch: called after each.
    """
    batch_size = batch_size or 2 * _together(backbone.device)
    total = 0.0
    order = sorted(cases, key=lambda case: len(case.history))
    for first in range(0, len(order), batch_size * group.size):
        together = order[first : first + batch_size * group.size]
        part = group.share(together)
        asked = part or together[:1]  # sharded blocks are collected by all ranks, also by one without a case
        batch = [TrainingSequence(np.append(case.history, case.target), len(case.history)) for case in asked]
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=low_precision):
            loss, _ = sequence_loss(backbone, batch, codes)
        total += loss.item() * len(part)
        on_batch()
    return group.sums([total])[0] / max(len(cases), 1)
