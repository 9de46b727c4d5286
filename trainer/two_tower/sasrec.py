"""SASRec (Kang & McAuley, ICDM 2018) as a sanity row: next item from the last 20, one embedding an item.

Trained with cross-entropy over all items instead of one sampled negative, which is known to be much stronger
(Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023), with the item embeddings as output weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from trainer.examples import Case, Examples, Rows, TrainingSequence
from trainer.two_tower.base import LearnReport, Positives, Progress, check_state, own_copy
from trainer.two_tower.ranks import target_ranks


@dataclass(frozen=True, slots=True)
class SasRecConfig:
    dimensions: int = 64
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.2
    learning_rate: float = 1e-3
    increment: float = 0.5
    """Factor of the rate after D_1: new items have to be learnt from the start, so it stays high."""
    batch_size: int = 128
    patience: int = 5
    epochs: int = 200
    """At most."""


class SasRec(nn.Module):
    """Causal self-attention over item embeddings; item: [items, d] is input and output."""

    def __init__(self, items: int, length: int, config: SasRecConfig) -> None:
        super().__init__()
        self.length, self._heads, self._dropout = length, config.heads, config.dropout
        d = config.dimensions
        self.item = nn.Parameter(torch.randn(items, d) * 0.02)
        self.position = nn.Parameter(torch.randn(length, d) * 0.02)
        self.attention_norm = nn.ModuleList(nn.LayerNorm(d) for _ in range(config.blocks))
        self.attention = nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(config.blocks))
        self.projection = nn.ModuleList(nn.Linear(d, d) for _ in range(config.blocks))
        self.forward_norm = nn.ModuleList(nn.LayerNorm(d) for _ in range(config.blocks))
        self.feed_forward = nn.ModuleList(
            nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d)) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(d)

    def forward(self, rows: Tensor) -> Tensor:
        """int64 [n, length], padded at the end -> [n, length, d]: what follows each place, from it and those before."""
        drop = self._drop
        x: Tensor = drop(functional.embedding(rows, self.item) * self.item.shape[1] ** 0.5 + self.position)
        for i in range(len(self.attention)):
            q, k, v = self.attention[i](self.attention_norm[i](x)).unflatten(2, (3, self._heads, -1)).unbind(dim=2)
            mixed = functional.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
            )
            x = x + drop(self.projection[i](mixed.transpose(1, 2).flatten(2)))
            x = x + drop(self.feed_forward[i](self.forward_norm[i](x)))
        after: Tensor = self.norm(x)
        return after

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self._dropout, self.training)


class SasRecRanker:
    """Trained on D_1 until the validation loss no longer falls, then on each later block at half the rate.

    Items that training has not met yet are left out of the softmax and rank behind all others; what users there are
    does not matter to it.
    """

    name: str = "sasrec"

    def __init__(
        self, items: int, history_items: int, seed: int, device: torch.device, config: SasRecConfig | None = None
    ) -> None:
        self._config, self._seed, self._device = config or SasRecConfig(), seed, device
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._model = SasRec(items, history_items, self._config).to(device).eval()
        self._known = torch.zeros(items, dtype=torch.bool, device=device)

    def learn(self, block: int, positives: Positives, examples: Examples, report: Progress) -> LearnReport:
        """Learn from the block's training sequences; `positives` holds the same targets without their histories."""
        config, model = self._config, self._model
        sequences = [s for s in examples.training if len(s.rows) > max(s.first_target, 1)]
        if not sequences:
            report(1, 1)
            return LearnReport()
        self._known[torch.from_numpy(np.concatenate([s.rows for s in sequences])).to(self._device)] = True
        known = self._known.cpu().numpy()
        cases = [case for case in examples.validation if known[case.target] and len(case.history)]
        validation = [TrainingSequence(np.append(c.history, c.target), len(c.history)) for c in cases]
        random = np.random.default_rng((self._seed, block))
        rate = config.learning_rate * (config.increment if block else 1.0)
        optimiser = torch.optim.Adam(model.parameters(), lr=rate)
        losses: list[float] = []
        best_epoch, best, lowest = 0, own_copy(model.state_dict()), self._mean_loss(validation)
        with torch.random.fork_rng():  # dropout draws from torch's own generators
            torch.manual_seed(int(random.integers(2**31)))
            for epoch in range(1, config.epochs + 1):
                model.train()
                total, count = 0.0, 0
                for batch in _batches(sequences, config.batch_size, random):
                    loss, targets = self._loss(batch)
                    optimiser.zero_grad(set_to_none=True)
                    (loss / targets).backward()  # type: ignore[no-untyped-call]  # torch
                    optimiser.step()
                    total, count = total + loss.item(), count + targets
                model.train(False)
                losses.append(total / count)
                score = self._mean_loss(validation) if validation else losses[-1]
                if score < lowest:
                    best_epoch, best, lowest = epoch, own_copy(model.state_dict()), score
                report(epoch, config.epochs)
                if epoch - best_epoch >= config.patience:
                    break
        model.load_state_dict(best)
        report(config.epochs, config.epochs)
        parameters = sum(p.numel() for p in model.parameters())
        return LearnReport(tuple(losses), best_epoch, parameters)

    def ranks(self, cases: Sequence[Case], depth: int = 10) -> NDArray[np.int64]:
        """1-based, int64 [cases]; ties by row; 0 beyond depth. Without a history every item scores alike."""

        def score(first: int, last: int) -> Tensor:
            histories = [case.history[-self._model.length :] for case in cases[first:last]]
            rows, end = self._padded(histories)
            after = self._model(rows)[torch.arange(len(rows), device=self._device), (end - 1).clamp(min=0)]
            return torch.where(end[:, None] > 0, after @ self._model.item.T, 0.0)

        return target_ranks(score, cases, self._known, depth)

    def state(self) -> dict[str, Tensor]:
        return own_copy({**self._model.state_dict(), "known": self._known})

    def load(self, state: Mapping[str, Tensor]) -> None:
        check_state(state, {**self._model.state_dict(), "known": self._known}, self.name)
        self._model.load_state_dict({name: tensor for name, tensor in state.items() if name != "known"})
        self._known = state["known"].to(self._device).clone()

    @torch.no_grad()
    def _mean_loss(self, sequences: Sequence[TrainingSequence]) -> float:
        """Cross-entropy per target in nats; infinite without sequences."""
        size = self._config.batch_size
        parts = [self._loss(sequences[first : first + size]) for first in range(0, len(sequences), size)]
        return sum(loss.item() for loss, _ in parts) / sum(count for _, count in parts) if parts else np.inf

    def _loss(self, batch: Sequence[TrainingSequence]) -> tuple[Tensor, int]:
        """Sum over the targets of the batch of their cross-entropy among known items, and how many there are."""
        length = self._model.length
        rows, end = self._padded([s.rows[:-1][-length:] for s in batch])
        wanted, _ = self._padded([s.rows[1:][-length:] for s in batch])
        # The place before a target is what predicts it; one that stands first in its sequence has nothing before it.
        own_first = [max(0, s.first_target - 1 - max(0, len(s.rows) - 1 - length)) for s in batch]
        places = torch.arange(length, device=self._device)
        first = torch.tensor(own_first, device=self._device)
        target = (places >= first[:, None]) & (places < end[:, None])
        logits = self._model(rows)[target] @ self._model.item.T
        logits = logits.masked_fill(~self._known, -torch.inf)
        return functional.cross_entropy(logits, wanted[target], reduction="sum"), int(target.sum())

    def _padded(self, sequences: Sequence[Rows]) -> tuple[Tensor, Tensor]:
        """int64 [n, length], 0 behind the end, and int64 [n], how many are real."""
        length = np.array([len(rows) for rows in sequences])
        padded = np.zeros((len(sequences), self._model.length), dtype=np.int64)
        padded[np.arange(self._model.length) < length[:, None]] = np.concatenate(sequences)
        return torch.from_numpy(padded).to(self._device), torch.from_numpy(length).to(self._device)


def _batches(
    sequences: Sequence[TrainingSequence], size: int, random: np.random.Generator
) -> Iterator[list[TrainingSequence]]:
    order = random.permutation(len(sequences))
    for first in range(0, len(order), size):
        yield [sequences[i] for i in order[first : first + size]]
