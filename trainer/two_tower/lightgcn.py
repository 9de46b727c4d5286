"""One block of LightGCN training: BPR over the block's pairs, propagated over the block's graph. Read top to bottom."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from trainer.two_tower.base import LearnReport, Progress
from trainer.two_tower.graph import Graph
from trainer.two_tower.losses import bpr


@dataclass(frozen=True, slots=True)
class LightGcnConfig:
    """METHODS.md, two-tower family; what it leaves open says so."""

    dimensions: int = 64
    layers: int = 2
    deviation: float = 0.01
    """Of the normal distribution that embeddings start from."""
    negatives: int = 4
    learning_rate: float = 1e-3
    l2: float = 1e-5
    batch_size: int = 1024
    patience: int = 20
    """Validations without a better one. On little data it can end D_1 at once: the untrained embeddings, propagated,
    already rank by co-occurrence, and validation falls before it rises."""
    steps_between: int = 20
    """Validation after every epoch, but so many steps apart at least. Open there: a small block's epoch is one step,
    and 20 of those decide nothing."""
    epochs: int = 1000
    """At most. Open there."""
    validation_cases: int = 2000
    """At most, a seeded sample above. Open there."""
    contrast: float = 0.5
    """b, the weight of every contrastive term."""
    share: float = 0.2
    """PISA keeps each weight in its top share."""


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Embeddings: user [users, d], item [items, d]."""

    user: Tensor
    item: Tensor


Penalty = Callable[[Tensor, Tensor], Tensor]  # (distinct users int64 [n], their whole table now) -> scalar


def train_block(
    start: Tables,
    graph: Graph,
    negatives: Tensor,
    config: LightGcnConfig,
    *,
    validate: Callable[[Tables], float],
    generator: torch.Generator,
    report: Progress,
    penalty: Penalty | None = None,
    weights: Sequence[nn.Parameter] = (),
) -> tuple[Tables, LearnReport]:
    """The layer-0 tables at their best epoch, the start included; `start` stays as it is.

    negatives: int64, rows to draw negatives from. validate: of propagated tables, higher is better; the training loss
    decides between equal scores, so that a model that ranks nothing right yet goes on. weights: the penalty's own.
    """
    user, item = (nn.Parameter(table.detach().clone()) for table in (start.user, start.item))
    parameters = [user, item, *weights]
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)
    passes = math.ceil(config.steps_between / math.ceil(len(graph.user) / config.batch_size))  # for one validation
    losses: list[float] = []
    best_epoch, best, best_score = 0, start, (_score(graph, user, item, config, validate), -np.inf)
    for epoch in range(1, config.epochs + 1):
        total = torch.zeros((), device=user.device)
        for places, drawn in _batches(graph, negatives, config, generator):
            own, liked = graph.user[places], graph.item[places]
            all_users, all_items = graph.propagate(user, item, config.layers)
            loss = bpr(embedding(own, all_users), embedding(liked, all_items), embedding(drawn, all_items))
            layer_0 = (embedding(own, user), embedding(liked, item), embedding(drawn, item))
            loss = loss + config.l2 / 2 * torch.stack([e.square().sum() for e in layer_0]).sum() / len(own)
            if penalty is not None:
                loss = loss + config.contrast * penalty(torch.unique(own), all_users)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimiser.step()
            total += loss.detach() * len(own)
        losses.append(total.item() / len(graph.user))
        report(epoch, config.epochs)
        if epoch % passes and epoch != config.epochs:
            continue
        score = (_score(graph, user, item, config, validate), -losses[-1])
        if score > best_score:
            best_epoch, best_score = epoch, score
            best = Tables(user.detach().clone(), item.detach().clone())
        if epoch - best_epoch >= config.patience * passes:
            break
    report(config.epochs, config.epochs)
    count = sum(p.numel() for p in parameters)
    return best, LearnReport(tuple(losses), best_epoch, count)


@torch.no_grad()
def _score(
    graph: Graph, user: Tensor, item: Tensor, config: LightGcnConfig, validate: Callable[[Tables], float]
) -> float:
    return validate(Tables(*graph.propagate(user, item, config.layers)))


def _batches(
    graph: Graph, negatives: Tensor, config: LightGcnConfig, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Edges in a new order, int64 [n], with negatives for each, int64 [n, k]."""
    order = torch.randperm(len(graph.user), generator=generator).to(graph.user.device)
    drawn = draw_negatives(graph, graph.user[order], negatives, config.negatives, generator)
    yield from zip(torch.split(order, config.batch_size), torch.split(drawn, config.batch_size), strict=True)


def draw_negatives(graph: Graph, user: Tensor, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """int64 [n, count]: rows drawn uniformly from `rows`, drawn again where they are a pair of the user's.

    Ten times at most: who has taken nearly everything keeps a positive among the negatives.
    """
    pairs = graph.user * graph.items + graph.item  # rising
    drawn = _draw(rows, (len(user), count), generator)
    for _ in range(10):
        keys = user[:, None] * graph.items + drawn
        places = torch.searchsorted(pairs, keys).clamp(max=len(pairs) - 1)
        taken = pairs[places] == keys
        again = int(taken.sum())
        if not again:
            break
        drawn[taken] = _draw(rows, (again,), generator)
    return drawn


def _draw(rows: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), shape, generator=generator).to(rows.device)]
