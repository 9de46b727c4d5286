"""Training steps as CUDA graphs, where launching their kernels takes longer than running them.

A step of a small model is thousands of kernels of a few microseconds. Captured, they are launched as one: the forward
and backward pass of each shape of a batch (trainer.execution pads batches to few), and what a step does once it has
the gradients. Whatever a graph reads and changes must stay where it is in memory. docs/decisions/0015 has what it
brought.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from service.generation.backbone import Backbone
from trainer.decoder import Placed, place, summed_loss
from trainer.layout import Layout
from trainer.lora import let_go


@dataclass(frozen=True, eq=False)
class _Captured:
    """One shape: replaying reads `inputs` and `scale`, adds to the parameters' .grad and leaves `loss`."""

    graph: torch.cuda.CUDAGraph
    inputs: Placed
    scale: Tensor
    loss: Tensor


@dataclass(eq=False)
class CapturedPasses:
    """Adds the gradients of batches to `parameters`. Their .grad must stay where they are: zero them in place.

    The first batch of a shape is computed as it comes, which loads its kernels; the second is captured. dropouts: on
    embedded tokens and on the residual stream; each replay draws anew.
    """

    backbone: Backbone
    parameters: Sequence[nn.Parameter]
    dropouts: tuple[float, float]
    low_precision: bool
    pool: Any
    """torch.cuda.graph_pool_handle(): memory of graphs that run one after another."""
    graphs: dict[tuple[torch.Size, ...], _Captured] = field(default_factory=dict)
    """By the shapes of a batch's tokens and labels."""
    _seen: set[tuple[torch.Size, ...]] = field(default_factory=set)

    def add_gradients(self, layout: Layout, scale: float) -> Tensor:
        """Of `scale` times the batch's summed loss; returns that product, detached."""
        inputs = place(layout, self.backbone.device)
        shape = inputs.tokens.shape, inputs.labels.shape
        if shape not in self.graphs:
            if shape not in self._seen:
                self._seen.add(shape)
                loss = self._loss(inputs, scale)
                loss.backward()  # type: ignore[no-untyped-call]  # torch
                return loss.detach()
            self.graphs[shape] = self._capture(inputs)
        own = self.graphs[shape]
        own.inputs.copy_(inputs)
        own.scale.fill_(scale)
        own.graph.replay()
        return own.loss.clone()

    def _loss(self, inputs: Placed, scale: float | Tensor) -> Tensor:
        with torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.low_precision):
            return summed_loss(self.backbone, inputs, *self.dropouts) * scale

    def _capture(self, inputs: Placed) -> _Captured:
        """Nothing is computed yet. `inputs` becomes the graph's own."""
        scale = torch.zeros((), device=self.backbone.device)
        graph = torch.cuda.CUDAGraph()
        # Else autograd's node of each parameter would be that of the step before, on a stream that is not captured.
        let_go(self.backbone.decoder)
        with _capturing(graph, self.pool):
            loss = self._loss(inputs, scale)
            # Taken and added, not accumulated by backward(): that may happen on another stream than the captured one.
            add_up(self.parameters, torch.autograd.grad(loss, list(self.parameters), allow_unused=True))
            loss = loss.detach()
        return _Captured(graph, inputs, scale, loss)


@dataclass(eq=False)
class CapturedCall:
    """A function of nothing but what stays where it is: the first call is as it comes, the second is captured."""

    function: Callable[[], tuple[Tensor, ...]]
    pool: Any
    _called: bool = False
    _graph: torch.cuda.CUDAGraph | None = None
    _results: tuple[Tensor, ...] = ()

    def __call__(self) -> tuple[Tensor, ...]:
        if not self._called:
            self._called = True
            return self.function()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with _capturing(self._graph, self.pool):
                self._results = self.function()
        self._graph.replay()
        return tuple(result.clone() for result in self._results)


def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> AbstractContextManager[None]:
    """Other threads of this process may go on using the device."""
    return torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")


def add_up(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add each gradient that there is to its parameter's .grad, in place."""
    sums, found = [], []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        sums.append(parameter.grad)
        found.append(gradient)
    if found:
        torch._foreach_add_(sums, found)
