"""LightGCN over the blocks: frozen, fine-tuned, or fine-tuned with one of three contrastive terms."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.evaluation import DEPTH, ndcg
from trainer.examples import Case, Examples, sample_cases
from trainer.two_tower.base import LearnReport, Positives, Progress, check_state, own_copy, user_places
from trainer.two_tower.contrast import (
    Contrast,
    FixedWeights,
    PersonalImportance,
    Total,
    centroids_of,
    clusters_of,
)
from trainer.two_tower.graph import Graph
from trainer.two_tower.lightgcn import LightGcnConfig, Tables, train_block
from trainer.two_tower.losses import stability_plasticity
from trainer.two_tower.ranks import target_ranks


class Continual(StrEnum):
    PRETRAIN = "lightgcn-pretrain"
    FINETUNE = "lightgcn-finetune"
    CONTRASTIVE = "lightgcn-contrastive"
    PIW = "lightgcn-piw"
    PISA = "lightgcn-pisa"


class LightGcnRanker:
    """score = u.i of the embeddings after propagation over the block's own training pairs.

    A user or item without a pair in the block has no row in its graph: it keeps the embedding of the last block that
    had it, which is what a two-tower service would still hold for it; its layer-0 part alone would be a third of
    everyone else's scale. One that no block had yet is a row of N(0, 0.01), and such items rank behind all others.
    Negatives are drawn from items that training has met, since a service cannot draw what it does not know of.
    Pretrain learns D_1 and stays: later users are random rows to it. Up to the end of D_1 all five methods are the
    same, so that the state of one can be loaded into the others.
    """

    def __init__(
        self,
        continual: Continual,
        users: Sequence[str],
        items: int,
        seed: int,
        device: torch.device,
        config: LightGcnConfig | None = None,
    ) -> None:
        self.name: str = continual.value
        self._continual, self._seed, self._device = continual, seed, device
        self._config = config or LightGcnConfig()
        self._place_of = {user: i for i, user in enumerate(users)}
        shapes = ((len(users), self._config.dimensions), (items, self._config.dimensions))
        generator = torch.Generator().manual_seed(seed)
        user, item = (torch.randn(s, generator=generator).to(device) * self._config.deviation for s in shapes)
        self._layer_0 = Tables(user, item)
        self._served = Tables(user.clone(), item.clone())
        self._neighbours = torch.zeros_like(user)  # mean of the served items of the last block that had the user
        self._met_user = torch.zeros(len(users), dtype=torch.bool, device=device)
        self._met_item = torch.zeros(items, dtype=torch.bool, device=device)

    def learn(self, block: int, positives: Positives, examples: Examples, report: Progress) -> LearnReport:
        """Learn from this block's pairs alone, from where the last block ended."""
        if not len(positives.user) or (block > 0 and self._continual is Continual.PRETRAIN):
            report(1, 1)
            return LearnReport()
        graph = Graph.of(positives, len(self._met_user), len(self._met_item), self._device)
        met_item = self._met_item | graph.has_item()
        seed = int(np.random.SeedSequence((self._seed, block)).generate_state(1)[0])
        cases = sample_cases(examples.validation, self._config.validation_cases, seed)
        outcome = LearnReport()

        def validate(propagated: Tables) -> float:
            ranks = self._ranks(self._serve(graph, propagated), cases, met_item, DEPTH)
            return float(ndcg(ranks, DEPTH).mean()) if len(ranks) else 0.0

        def train(penalty: Contrast | Total | None, importance: PersonalImportance | None) -> Tables:
            nonlocal outcome
            tables, outcome = train_block(
                self._layer_0,
                graph,
                torch.nonzero(met_item)[:, 0],
                self._config,
                validate=validate,
                generator=torch.Generator().manual_seed(seed),
                report=report,
                penalty=penalty,
                weights=list(importance.parameters()) if importance is not None else (),
            )
            return tables

        penalty: Contrast | Total | None = None
        importance: PersonalImportance | None = None
        if self._met_user.any():  # the first block has nothing to hold on to
            match self._continual:
                case Continual.CONTRASTIVE:
                    penalty = Contrast(self._served.user, self._neighbours, self._met_user)
                case Continual.PIW:
                    importance = self._importance(seed)
                    penalty = Contrast(self._served.user, self._neighbours, self._met_user, importance)
                case Continual.PISA:
                    penalty = self._stability_and_plasticity(graph, train(None, None), seed)
        self._layer_0 = train(penalty, importance)
        self._served = self._serve(graph, self._propagate(graph, self._layer_0))
        here = graph.has_user()
        self._neighbours = torch.where(here[:, None], graph.neighbour_means(self._served.item), self._neighbours)
        self._met_user, self._met_item = self._met_user | here, met_item
        return outcome

    def ranks(self, cases: Sequence[Case], depth: int = 10) -> NDArray[np.int64]:
        """1-based, int64 [cases]; ties by row; 0 beyond depth. Raises DatasetError for an unknown user."""
        return self._ranks(self._served, cases, self._met_item, depth)

    def state(self) -> dict[str, Tensor]:
        return own_copy(self._tensors())

    def load(self, state: Mapping[str, Tensor]) -> None:
        check_state(state, self._tensors(), self.name)
        own = {name: tensor.to(self._device).clone() for name, tensor in state.items()}
        self._layer_0 = Tables(own["user"], own["item"])
        self._served = Tables(own["served_user"], own["served_item"])
        self._neighbours, self._met_user, self._met_item = own["neighbours"], own["met_user"], own["met_item"]

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "user": self._layer_0.user,
            "item": self._layer_0.item,
            "served_user": self._served.user,
            "served_item": self._served.item,
            "neighbours": self._neighbours,
            "met_user": self._met_user,
            "met_item": self._met_item,
        }

    @torch.no_grad()
    def _propagate(self, graph: Graph, layer_0: Tables) -> Tables:
        return Tables(*graph.propagate(layer_0.user, layer_0.item, self._config.layers))

    def _serve(self, graph: Graph, propagated: Tables) -> Tables:
        return Tables(
            torch.where(graph.has_user()[:, None], propagated.user, self._served.user),
            torch.where(graph.has_item()[:, None], propagated.item, self._served.item),
        )

    def _ranks(self, tables: Tables, cases: Sequence[Case], known: Tensor, depth: int) -> NDArray[np.int64]:
        users = torch.from_numpy(user_places([case.user_id for case in cases], self._place_of)).to(self._device)
        return target_ranks(lambda first, last: tables.user[users[first:last]] @ tables.item.T, cases, known, depth)

    def _importance(self, seed: int) -> PersonalImportance:
        items = self._served.item[self._met_item]
        centroids = centroids_of(items, clusters_of(items, seed))
        return PersonalImportance(centroids, self._served.user, torch.Generator().manual_seed(seed))

    def _stability_and_plasticity(self, graph: Graph, forward_layer_0: Tables, seed: int) -> Total:
        """PISA's four terms; a user without a past has w1 = 0.5 and, with nothing to keep, no part in w2's terms."""
        forward = self._serve(graph, self._propagate(graph, forward_layer_0))
        clusters = clusters_of(self._served.item[self._met_item], seed)
        before = centroids_of(self._served.item[self._met_item], clusters)
        after = centroids_of(forward.item[self._met_item], clusters)
        here = graph.has_user()
        both = torch.nonzero(here & self._met_user)[:, 0]
        w1, w2 = stability_plasticity(
            (self._served.user[both] @ before.T).softmax(dim=1),
            (forward.user[both] @ after.T).softmax(dim=1),
            self._config.share,
        )
        new, old = (torch.full((len(here),), 0.5, device=self._device) for _ in range(2))
        new[both], old[both] = w1, w2
        return Total(
            [
                Contrast(forward.user, graph.neighbour_means(forward.item), here, FixedWeights(new)),
                Contrast(self._served.user, self._neighbours, self._met_user, FixedWeights(old)),
            ]
        )
