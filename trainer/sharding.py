"""A backbone too large for one device: its blocks spread over the ranks by FSDP (fully_shard), the rest on each.

A block is collected where it runs, forward and backward, and its gradients are summed as they are spread again.
Embedding, head and last norm stay whole on every rank, since losses read them outside of a forward pass; their
gradients are added up with those of LoRA. docs/decisions/0021 says why accelerate is not what calls fully_shard.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from service.errors import ConfigurationError
from service.generation.backbone import Backbone

if TYPE_CHECKING:
    from trainer.group import Group


def shard(backbone: Backbone, group: "Group") -> None:
    """Spread the blocks' weights over the ranks, in place, and move all to the group's device.

    Call it before LoRA is put on. Raises ConfigurationError for a model without blocks as most have them.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    decoder, blocks = backbone.decoder, getattr(backbone.decoder, "layers", None)
    if not isinstance(blocks, torch.nn.ModuleList) or not len(blocks):
        raise ConfigurationError(
            f"ADAPTIDE_SHARD wants a decoder with a list of blocks, which {type(decoder).__name__} does not have"
        )
    mesh = init_device_mesh(group.device.type, (group.size,))
    in_blocks = {parameter for block in blocks for parameter in block.parameters()}
    whole_ones = [p for p in backbone.model.parameters() if p not in in_blocks]
    for parameter in whole_ones:
        parameter.data = parameter.data.to(group.device)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(decoder, mesh=mesh, ignored_params=set(whole_ones))
    for buffers in backbone.model.modules():
        for name, buffer in buffers._buffers.items():
            if buffer is not None:
                buffers._buffers[name] = buffer.to(group.device)
    for module in (decoder, *blocks):
        module.set_gradient_divide_factor(1.0)  # sums, no means
        module.set_force_sum_reduction_for_comms(True)  # gloo has no sum that scales first


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a part of it."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing its memory; a whole tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, detached. Collective for a sharded tensor."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def placed_like(values: Tensor, example: Tensor) -> Tensor:
    """A whole tensor as `example` lies: its device, type and, sharded, this rank's part."""
    values = values.to(device=example.device, dtype=example.dtype)
    if not isinstance(example, DTensor):
        return values
    return distribute_tensor(values, example.device_mesh, example.placements, src_data_rank=None)


def whole_weights(backbone: Backbone, *, keep: bool) -> dict[str, Tensor]:
    """Every parameter by name, on the CPU, in the backbone's own type; empty unless `keep`. Collective."""
    found = {}
    for name, parameter in backbone.model.named_parameters():
        values = whole(parameter)  # one after the other: never the whole model on a device
        if keep:
            found[name] = values.cpu()
    return found
