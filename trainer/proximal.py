"""Terms that tie an adapter to its previous state (paper, section 4 and figure 2; METHODS.md, regularisers).

All in float32 or wider: the softmax-KL of a whole tensor is of the order of 1e-5, below bfloat16's rounding noise.
Adapters are given as PEFT name -> tensor; gradients flow to the current adapter only, and previous states are copies.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from service.settings import GroupBy

LoraTensors = Mapping[str, Tensor]  # PEFT name -> lora_A [r, d_in] or lora_B [d_out, r]
Pairs = list[tuple[str, Tensor, Tensor]]  # (module's PEFT name, A, B)


def groups(tensors: LoraTensors, group_by: GroupBy) -> list[Tensor]:
    """The vectors v^g over which one softmax runs, those of equal length stacked to [count, n]; gradients flow through.

    tensor: every A and every B; module: A and B of one module together; rank: every row of A and column of B;
    layer: all tensors of one transformer layer. Stacked because a few large kernels take the time of one small one.
    """
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        tensor = _wide(tensor)
        if group_by is GroupBy.RANK:
            parts[name] = [tensor if ".lora_A." in name else tensor.T]
            continue
        key = name
        if group_by is GroupBy.MODULE:
            key = _module_of(name)
        elif group_by is GroupBy.LAYER:
            found = re.search(r"\.(\d+)\.", name)  # the block, whatever its list is called: layers, h, ..
            key = found[1] if found else name
        parts.setdefault(key, []).append(tensor.reshape(1, -1))
    by_length: dict[int, list[Tensor]] = {}
    for part in parts.values():
        vectors = torch.cat(part, dim=-1)
        by_length.setdefault(vectors.shape[-1], []).append(vectors)
    return [torch.cat(same) for same in by_length.values()]


class SoftmaxKL:
    """sum_g KL(softmax(v_t^g) || softmax(v_{t-1}^g)), paper eq. 12; the previous state is fixed when this is made.

    With GroupBy.RANK it is figure 2's per-rank KL.
    """

    def __init__(self, previous: LoraTensors, group_by: GroupBy) -> None:
        self._group_by = group_by
        self._previous = groups(_fixed(previous), group_by)

    def __call__(self, current: LoraTensors) -> Tensor:
        """A scalar. Raises ValueError when `current` has other groups than the previous state."""
        changes = _changes(groups(current, self._group_by), self._previous)
        return _total(softmax_kl(change, before) for change, before in zip(changes, self._previous, strict=True))


class Quadratic:
    """1/2 sum_g (v_t - v_{t-1})^T H (v_t - v_{t-1}), paper eq. 6, without materialising H.

    weighted = False: H = I (plain L2). weighted = True: H = diag(p) - p p^T with p = softmax(v_{t-1}^g), the local form
    of SoftmaxKL (proposition 3), which is half the p-weighted variance of the change (corollary 4).
    """

    def __init__(self, previous: LoraTensors, group_by: GroupBy, *, weighted: bool) -> None:
        self._group_by, self._weighted = group_by, weighted
        self._previous = groups(_fixed(previous), group_by)

    def __call__(self, current: LoraTensors) -> Tensor:
        """A scalar. Raises ValueError when `current` has other groups than the previous state."""
        terms = []
        changes = _changes(groups(current, self._group_by), self._previous)
        for change, before in zip(changes, self._previous, strict=True):
            if self._weighted:
                p = torch.softmax(before, dim=-1)
                mean = (p * change).sum(dim=-1, keepdim=True)
                terms.append(p * (change - mean) ** 2 / 2)  # centred: nothing cancels
            else:
                terms.append(change**2 / 2)
        return _total(terms)


class Orthogonal:
    """sum over modules of ||A_{t-1} A_t^T||_F^2 + ||B_{t-1}^T B_t||_F^2, as in the public code of the paper's authors.

    O-LoRA itself (Wang et al., 2023) sums |A_{t-1} A_t^T| without B; the squares are kept here because figure 2 is what
    is reproduced, and because their gradient vanishes with the overlap instead of jumping. The new state is asked to
    span other directions than the old, so an inherited adapter pays, and is pushed, from the first step: the term is
    not 0 at the previous state. Its B part is 0, and so is that part's gradient, while either B is 0.
    """

    def __init__(self, previous: LoraTensors) -> None:
        self._previous = _pairs(_fixed(previous))

    def __call__(self, current: LoraTensors) -> Tensor:
        """A scalar. Raises ValueError when `current` adapts other modules or shapes than the previous state."""
        terms = []
        for _, before_a, before_b, a, b in _aligned(self._previous, _pairs(current)):
            terms += [(before_a @ a.T) ** 2, (before_b.T @ b) ** 2]
        return _total(terms)


class OutputKL:
    """sum over modules of the mean over the batch's tokens of KL(softmax(s B_t A_t x) || softmax(s B_{t-1} A_{t-1} x)).

    Figure 2's LoRA-output KL: the same tie as SoftmaxKL, but in what the adapter computes instead of in what it is.
    x are the modules' inputs of one forward pass, detached, so the gradient is that of each module's own A and B.
    Show them to `observe`, then call. The last pass shown counts: passes of an evaluation in between are replaced by
    the next batch, and the term can be asked more than once for one batch.

    Of more than `tokens` tokens (padding to the batch's longest sequence included) a sample is taken: a fixed
    pseudo-random choice of positions that depends on their number alone, so the value is a function of the inputs. It
    is not every n-th token, which would be the same code level of every item.
    """

    def __init__(self, previous: LoraTensors, scale: float, *, tokens: int = 512) -> None:
        """scale: s = alpha / r of both states."""
        self._previous = _pairs(_fixed(previous))
        self._scale, self._tokens = scale, tokens
        self._inputs: dict[str, Tensor] = {}

    def observe(self, module: str, x: Tensor) -> None:
        """Keep the inputs x [..., d_in] of the module with this PEFT name in place of those of the pass before."""
        flat = x.detach().reshape(-1, x.shape[-1])
        if len(flat) > self._tokens:
            flat = flat[_sample(len(flat), self._tokens).to(flat.device)]
        self._inputs[module] = _wide(flat)

    def __call__(self, current: LoraTensors) -> Tensor:
        """A scalar. Raises ValueError for other modules or shapes than before, or when a module was not observed."""
        unseen = [module for module, *_ in self._previous if module not in self._inputs]
        if unseen:
            raise ValueError(f"no inputs of {unseen[0]}: show a forward pass to observe() before asking for the term")
        terms = []
        for module, before_a, before_b, a, b in _aligned(self._previous, _pairs(current)):  # one fits the cache
            if before_a.shape != a.shape:
                raise ValueError("the current adapter's rank is not that of the previous one")
            old = self._inputs[module] @ before_a.T
            # B A - B' A' as B (A - A') + (B - B') A': the difference of two outputs would round a small change away.
            inner = torch.cat([self._inputs[module] @ (a - before_a).T, old], dim=-1)
            change = (self._scale * inner) @ torch.cat([b, b - before_b], dim=-1).T
            terms.append(softmax_kl(change, (self._scale * old) @ before_b.T).mean())
        return _total(terms)


def softmax_kl(change: Tensor, before: Tensor) -> Tensor:
    """KL(softmax(before + change) || softmax(before)) [...] over the last dimension of [..., n]; `before` is fixed.

    Accurate, value and gradient, for changes far below the rounding of `before` + `change`; exactly 0 without one.
    """
    value: Tensor = _SoftmaxKL.apply(change, before)  # type: ignore[no-untyped-call]  # torch
    return value


class _SoftmaxKL(torch.autograd.Function):
    """With p, q the two softmaxes and c = log q - log p: the sum of q c; its gradient is q (c - KL) as it stands.

    The gradient that autograd would derive from the value is the same number as a difference of far larger ones.
    """

    @staticmethod
    def forward(ctx: Any, change: Tensor, before: Tensor) -> Tensor:
        ctx.save_for_backward(change, before)
        c, log_p = _log_ratio(change, before), torch.log_softmax(before, dim=-1)
        p = log_p.exp()
        # q and p sum to 1, so the terms q c - q + p have the sum of q c; but each is of second order and at least 0,
        # where in the sum of q c first-order terms would have to cancel: at 1e-3 float32 has no right digit left.
        # For the same reason q - p is p (e^c - 1), but beyond c = 1 that could overflow and the plain form is exact.
        gain = torch.where(c < 1, p * c.clamp(max=1).expm1(), (log_p + c).exp() - p)
        return (p * c + (c - 1) * gain).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        change, before = ctx.saved_tensors
        c, q = _log_ratio(change, before), torch.softmax(before + change, dim=-1)
        return gradients[0].unsqueeze(-1) * q * (c - (q * c).sum(dim=-1, keepdim=True)), None


def _log_ratio(change: Tensor, before: Tensor) -> Tensor:
    """log q - log p. Its rounding beyond the change's own is one shift e of all entries.

    That scales the value by 1 + e, as the terms' derivative by it is KL itself; the gradient centres it away.
    """
    return change - (_logsumexp(before + change) - _logsumexp(before))


def _logsumexp(values: Tensor) -> Tensor:
    return torch.logsumexp(values, dim=-1, keepdim=True)


def first_step_weight(
    penalty: Callable[[], Tensor], parameters: Sequence[nn.Parameter], learning_rate: float, ratio: float
) -> float:
    """The lambda at which lambda ||g_prox|| / ||g_ce|| is `ratio` after one step (METHODS.md, known trap).

    An absolute lambda does not carry over between backbones, ranks or groupings; the ratio does. At the previous state
    a proximal has no gradient, so it is measured where Adam's first step at the peak rate leads: -learning_rate *
    sign(g_ce) in every coordinate, where g_ce is the parameters' .grad (none: no movement). Parameters and .grad are
    left bit for bit as they were. `penalty` is called once, there.

    0.0, no proximal, when ratio is 0, and when a norm is 0 so that no weight gives the ratio: without a data gradient
    nothing moves, and without a proximal gradient (a learning rate of 0, or a change that costs nothing) any weight
    would do nothing. Raises ValueError for a ratio below 0 or gradients that are not finite.
    """
    if not ratio >= 0:
        raise ValueError(f"the gradient ratio is {ratio}; give 0 (no proximal) or more")
    moving = [(p, p.detach().clone(), p.grad) for p in parameters if p.grad is not None]
    data_norm = _norm([gradient for *_, gradient in moving])
    if ratio == 0 or data_norm == 0:
        return 0.0
    try:
        with torch.no_grad():
            for parameter, _, gradient in moving:
                parameter.sub_(learning_rate * gradient.sign())
        own = torch.autograd.grad(penalty(), list(parameters), allow_unused=True)
    finally:
        with torch.no_grad():
            for parameter, start, _ in moving:
                parameter.copy_(start)
    own_norm = _norm([gradient for gradient in own if gradient is not None])
    if not math.isfinite(data_norm) or not math.isfinite(own_norm):
        raise ValueError("the gradients at the first step are not finite; lower the learning rate")
    return ratio * data_norm / own_norm if own_norm > 0 else 0.0


def _norm(gradients: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _fixed(tensors: LoraTensors) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack([term.sum() for term in terms]).sum()


def _module_of(name: str) -> str:
    return re.sub(r"\.lora_[AB]\..*", "", name)


def _changes(now: Sequence[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    if [v.shape for v in now] != [v.shape for v in before]:
        raise ValueError("the current adapter's shapes are not those of the previous one")
    return [v - u for v, u in zip(now, before, strict=True)]


def _pairs(tensors: LoraTensors) -> Pairs:
    names = sorted(name for name in tensors if ".lora_A." in name)
    if sorted(tensors) != sorted([*names, *map(_other, names)]):
        raise ValueError("an adapter has an A and a B for every module it adapts")
    return [(_module_of(name), _wide(tensors[name]), _wide(tensors[_other(name)])) for name in names]


def _other(name: str) -> str:
    return name.replace(".lora_A.", ".lora_B.")


def _aligned(before: Pairs, now: Pairs) -> list[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
    """(module, A', B', A, B) of every module. Raises ValueError unless all factors meet."""
    if [m for m, *_ in before] != [m for m, *_ in now]:
        raise ValueError("the current adapter adapts other modules than the previous one")
    rows = [(module, old_a, old_b, a, b) for (module, old_a, old_b), (_, a, b) in zip(before, now, strict=True)]
    if any(old_a.shape[1] != a.shape[1] or len(old_b) != len(b) for _, old_a, old_b, a, b in rows):
        raise ValueError("the current adapter's shapes are not those of the previous one")
    return rows


@lru_cache(maxsize=16)
def _sample(count: int, tokens: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:tokens]
