"""The processes that train one model together, each with its share of every batch; one process is a group of its own.

Ranks hold equal trainable weights (or, sharded, parts of the same ones) and go through the same steps: what one decides
by its own clock, memory or rounding is agreed on first. All methods but `share` and `parts` are collective: all ranks
call them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.sharding import is_sharded, local

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Group:
    """rank: 0 to size - 1; 0 keeps what comes of it. sharded: the decoder's blocks are spread over the ranks."""

    rank: int
    size: int
    device: torch.device
    sharded: bool = False

    def share(self, items: Sequence[T]) -> list[T]:
        """Every size-th of `items` from this rank on: each rank has as many, within one."""
        return list(items[self.rank :: self.size])

    def parts(
        self, batch: Sequence[T], cut: Callable[[Sequence[T]], Iterable[tuple[list[T], S]]]
    ) -> Iterator[tuple[list[T], S, bool]]:
        """This rank's share of a batch as `cut` divides it, and whether a part counts.

        On every rank there are as many parts, since sharded blocks are collected and gradients added up together; one
        that has fewer gets a sequence of another's, which must not count.
        """
        if self.size == 1:
            yield from ((part, size, True) for part, size in cut(batch))
            return
        shares = [batch[rank :: self.size] for rank in range(self.size)]
        cuts = [list(cut(share)) if share else [] for share in shares]
        yield from ((part, size, True) for part, size in cuts[self.rank])
        for _ in range(max(map(len, cuts)) - len(cuts[self.rank])):
            for part, size in cut(batch[:1]):
                yield part, size, False

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Each .grad becomes its sum over the ranks. Those of sharded parameters are summed already."""
        if self.size > 1:
            self.add_up([p.grad for p in parameters if p.grad is not None and not is_sharded(p)])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the ranks, in place; one message for each type of number."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            bucket = torch.cat([tensor.reshape(-1) for tensor in same]).to(self.device)
            dist.all_reduce(bucket)
            for tensor, summed in zip(same, torch.split(bucket, [t.numel() for t in same]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    @torch.no_grad()
    def make_equal(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes rank 0's, sharded ones apart."""
        if self.size == 1:
            return
        for tensor in tensors:
            if not is_sharded(tensor):
                dist.broadcast(tensor.data, 0)

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> None:
        """Scale the gradients down to a total norm of `most`, as torch does."""
        if not any(map(is_sharded, parameters)):
            nn.utils.clip_grad_norm_(parameters, most)
            return
        gradients = [(p, local(p.grad)) for p in parameters if p.grad is not None]
        squares = torch.zeros(2, dtype=torch.float64, device=self.device)
        for parameter, gradient in gradients:
            squares[int(is_sharded(parameter))] += gradient.double().square().sum()
        parts = squares[1:]
        dist.all_reduce(parts)
        scale = (most / ((squares[0] + parts[0]).sqrt() + 1e-6)).clamp(max=1.0)
        for _, gradient in gradients:
            gradient.mul_(scale.to(gradient.dtype))

    def sums(self, values: Sequence[float]) -> list[float]:
        """Of each value over the ranks."""
        if self.size == 1 or not values:
            return list(values)
        return self._reduced(values, dist.ReduceOp.SUM)

    def agree(self, value: float) -> float:
        """Rank 0's value."""
        return self.sums([value if self.rank == 0 else 0.0])[0]

    def least(self, value: float) -> float:
        """The smallest of the ranks' values."""
        return value if self.size == 1 else self._reduced([value], dist.ReduceOp.MIN)[0]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The ranks' tensors, all of one shape, on the CPU."""
        if self.size == 1:
            return [tensor.cpu()]
        found = [torch.empty_like(tensor, device=self.device) for _ in range(self.size)]
        dist.all_gather(found, tensor.to(self.device))
        return [own.cpu() for own in found]

    def _reduced(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, how)
        return [float(value) for value in found.tolist()]


ALONE = Group(0, 1, torch.device("cpu"))
"""One process."""
