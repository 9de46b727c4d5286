"""RQ-VAE (METHODS.md, tokenizer): an autoencoder whose latent is quantised by 4 residual codebooks of 256."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from service.catalog.semantic_ids import Float32
from service.catalog.trie import CODES, LEVELS
from trainer.tokenizer.rqkmeans import fit_rqkmeans

COMMITMENT = 0.25


class RqVae(nn.Module):
    """encoder: d -> hidden -> latent; decoder: its mirror; codebooks: [4, 256, latent]."""

    def __init__(self, dimensions: int, hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        sizes = [dimensions, *hidden, latent]
        self.encoder = _mlp(sizes)
        self.decoder = _mlp(sizes[::-1])
        self.codebooks = nn.Parameter(torch.zeros(LEVELS, CODES, latent))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction [n, d], quantisation loss (a scalar), codes int64 [n, 4]. Gradients pass straight through."""
        z = self.encoder(x)
        residual, quantised = z, torch.zeros_like(z)
        loss = z.new_zeros(())
        codes = []
        for book in self.codebooks:
            code = torch.cdist(residual, book).argmin(dim=1)
            chosen = book[code]
            loss = loss + nn.functional.mse_loss(chosen, residual.detach())
            loss = loss + COMMITMENT * nn.functional.mse_loss(residual, chosen.detach())
            residual, quantised = residual - chosen.detach(), quantised + chosen
            codes.append(code)
        return self.decoder(z + (quantised - z).detach()), loss, torch.stack(codes, dim=1)


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        if i:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


def fit_rqvae(
    embeddings: Float32,
    *,
    hidden: Sequence[int],
    latent: int,
    steps: int,
    seed: int,
    batch_size: int = 1024,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[tuple[tuple[Float32, Float32], ...], Float32]:
    """Encoder layers as (weight, bias) pairs and codebooks float32 [4, 256, latent].

    AdamW 1e-3, weight decay 1e-4. The codebooks start as the residual k-means of the first latents. A code that no
    item took in the last 50 steps is moved to a random item's residual, so that the levels stay spread.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    data = torch.from_numpy(embeddings)
    # Inputs of unit length over many dimensions are tiny per entry: scaled, so that the rate does not depend on d.
    data = data * (data.shape[1] ** 0.5)
    model = RqVae(data.shape[1], hidden, latent)
    with torch.no_grad():
        model.codebooks.copy_(torch.from_numpy(np.minimum(fit_rqkmeans(model.encoder(data).numpy(), seed=seed), 10)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    used = torch.zeros(LEVELS, CODES, dtype=torch.bool)
    for step in range(steps):
        batch = (
            data
            if len(data) <= batch_size
            else data[torch.from_numpy(random.choice(len(data), batch_size, replace=False))]
        )
        reconstruction, quantisation, codes = model(batch)
        loss = nn.functional.mse_loss(reconstruction, batch) + quantisation
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        used[torch.arange(LEVELS), codes] = True
        if step % 50 == 49 and step < steps * 3 // 4:
            _revive(model, data, ~used, random)
            used[:] = False
        on_step(step + 1, loss.item())
    layers = [layer for layer in model.encoder if isinstance(layer, nn.Linear)]
    weights = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in layers]
    weights[0] = (
        weights[0][0] * (data.shape[1] ** 0.5),
        weights[0][1],
    )  # the scaling above, folded into the first layer
    return tuple(
        (w.astype(np.float32), b.astype(np.float32)) for w, b in weights
    ), model.codebooks.detach().numpy().copy()


@torch.no_grad()
def _revive(model: RqVae, data: Tensor, unused: Tensor, random: np.random.Generator) -> None:
    residual = model.encoder(data)
    for book, idle in zip(model.codebooks, unused, strict=True):
        count = int(idle.sum())
        if count:
            book[idle] = residual[torch.from_numpy(random.choice(len(data), count))]
        residual = residual - book[torch.cdist(residual, book).argmin(dim=1)]
