"""What the cumulative methods share: the adapters of past windows, kept whole, and stacking them into one LoRA.

State: `adapter.<i>/<PEFT name>` for the adapters of past windows, oldest first; the last is the one that its own window
trained. An incumbent of another method counts as one past adapter, as it is served; one that changes nothing (a base's
first) as none.
"""

import zlib
from collections.abc import Mapping, Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn

from service.adapters.lora import MAX_RANK
from service.errors import ConfigurationError
from trainer.lora import LoraBackbone, LoraTensors, names_of, rank_of
from trainer.methods.base import Adapter, State


class Scope(StrEnum):
    """Which past adapters a window's model holds."""

    ALL = "all"
    LATEST = "latest"


def method_name(family: str, scope: Scope, inherit: bool) -> str:
    return f"{family}-{scope}-inherit" if inherit else f"{family}-{scope}"


def past_adapters(incumbent: Adapter | None, name: str, scope: Scope) -> list[LoraTensors]:
    """The past adapters that method `name` stands on, oldest first."""
    if incumbent is None:
        return []
    if incumbent.method != name:
        return [] if incumbent.changes_nothing else [incumbent.tensors]
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in incumbent.state.items():
        if key.startswith("adapter."):
            number, _, own = key.removeprefix("adapter.").partition("/")
            found.setdefault(int(number), {})[own] = tensor
    past: list[LoraTensors] = [found[number] for number in sorted(found)]
    return past if scope is Scope.ALL else past[-1:]


def state_of(adapters: Sequence[LoraTensors]) -> dict[str, Tensor]:
    """The state's tensors, float32 copies."""
    return {
        f"adapter.{number:04d}/{name}": tensor.detach().float().cpu().clone()
        for number, adapter in enumerate(adapters)
        for name, tensor in adapter.items()
    }


class Cumulative:
    """What SumLoRA, SD-LoRA and InfLoRA are made with.

    scope: all past adapters or the latest only. inherit: the window's own A and B start from the last window's
    (InfLoRA: B alone), else fresh.
    """

    family: str

    def __init__(self, scope: Scope, inherit: bool) -> None:
        self.name = method_name(self.family, scope, inherit)
        self._scope, self._inherit = scope, inherit

    def rank(self, incumbent: Adapter | None, default: int) -> int:
        """The rank of the last past adapter; without one the incumbent's, or `default`.

        Raises ConfigurationError beyond what engines take.
        """
        past = past_adapters(incumbent, self.name, self._scope)
        if not past:
            return incumbent.rank if incumbent else default
        own = rank_of(past[-1])
        if (total := sum(map(rank_of, past)) + own) > MAX_RANK:
            raise ConfigurationError(
                f"{self.name} would need rank {total} after {len(past)} windows and engines take {MAX_RANK}: choose "
                "a method that evolves a single adapter"
            )
        return own

    def _past(self, lora: LoraBackbone, incumbent: Adapter | None) -> list[LoraTensors]:
        """The past adapters, oldest first, where `lora` computes."""
        return to_device(past_adapters(incumbent, self.name, self._scope), lora)


def to_device(adapters: Sequence[LoraTensors], lora: LoraBackbone) -> list[LoraTensors]:
    device = lora.backbone.device
    return [{name: tensor.to(device) for name, tensor in adapter.items()} for adapter in adapters]


def normalised(adapter: LoraTensors) -> dict[str, Tensor]:
    """Each A and B over its Frobenius norm (paper eq. 5); a zero one stays zero."""
    return {name: tensor / tensor.norm().clamp_min(1e-12) for name, tensor in adapter.items()}


def stack(
    modules: Sequence[str], adapters: Sequence[LoraTensors], magnitudes: Sequence[Mapping[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """One LoRA that adds up `adapters`: A = [A_1; ..; A_n] [sum r, d_in], B = [a_1 B_1 .. a_n B_n] [d_out, sum r].

    magnitudes: per adapter, module -> scalar a_i; fewer than there are adapters: the last ones count once.
    """
    tensors: dict[str, Tensor] = {}
    for module in modules:
        a_name, b_name = names_of(module)
        parts = [adapter[b_name] for adapter in adapters]
        for i, own in enumerate(magnitudes or ()):
            parts[i] = own[module] * parts[i]
        tensors[a_name] = torch.cat([adapter[a_name] for adapter in adapters], dim=0)
        tensors[b_name] = torch.cat(parts, dim=1)
    return tensors


def begin_from(lora: LoraBackbone, past: Sequence[LoraTensors], inherit: bool) -> list[nn.Parameter]:
    """Initialise the window's own A and B: the last window's, or fresh (A kaiming, B 0).

    A fresh A is drawn by what the last window left, so it is another one in each window and the same whenever a window
    is learnt again. Drawn alike, the adapters that add up would begin in the same rows, which hardly turn.
    """
    if past and inherit:
        lora.load(past[-1])
    elif past:
        lora.draw(_checksum(past[-1]))
    return list(lora.parameters.values())


def _checksum(adapter: LoraTensors) -> int:
    """CRC-32 of its values."""
    found = 0
    for name in sorted(adapter):
        found = zlib.crc32(adapter[name].detach().cpu().numpy().tobytes(), found)
    return found


def own_state(past: Sequence[LoraTensors], lora: LoraBackbone, scope: Scope) -> State:
    """After training: the past, with what this window trained as its last."""
    kept = [*past, lora.parameters]
    return state_of(kept if scope is Scope.ALL else kept[-1:])
