"""Weights spread over the ranks (FSDP2), and put together again for a checkpoint.

What only sharded runs need is imported late: it takes half a second. So a sharded tensor is known by its methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def shard(
    module: nn.Module,
    blocks: type[nn.Module],
    device: torch.device,
    *,
    precision: str = "float32",
    also: Sequence[str] = (),
) -> None:
    """Spread a network's weights over the ranks in place (FSDP2): each block of type `blocks`, then the rest. Names
    stay. A single rank keeps them whole.

    Weights are put together for a block's forward pass, and again for its backward pass. With `bf16` they travel, and
    take part, in bf16, for autocast, which rounds most of them anyway: half the bytes. Each rank's share, the sums of
    gradients over the ranks and micro-batches, the update and all checkpoints stay in the weights' own type.

    Args:
        also: methods beside `forward` that compute with the weights.
    """
    if not dist.is_initialized():
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    gathered_in, summed_in = (torch.bfloat16, torch.float32) if precision == "bf16" else (None, None)
    # inputs stay as they are: rotary tables and the sum that runs through the blocks are float32
    policy = MixedPrecisionPolicy(param_dtype=gathered_in, reduce_dtype=summed_in, cast_forward_inputs=False)
    for part in [*(block for block in module.modules() if isinstance(block, blocks)), module]:
        # the root, too, is taken apart again after its forward pass: otherwise evaluation would leave it whole
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    for name in also:
        register_fsdp_forward_method(module, name)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, on all ranks; any other as it is. All ranks take part."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint, whole, on rank 0; sharded ones in CPU memory. All ranks take part; others get {}."""
    result = {}
    for name, tensor in tensors.items():
        full = whole(tensor)  # one at a time: only rank 0 needs room for all of them
        if not dist.is_initialized() or dist.get_rank() == 0:
            result[name] = full.cpu() if _is_sharded(tensor) else full
    return result


def sharded_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """This rank's part of a whole tensor that every rank has, where `pattern` is sharded; else the tensor itself."""
    if not _is_sharded(pattern):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    tensor = tensor.to(pattern.device)
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)


def sharded_parts(module: nn.Module) -> list[Any]:
    """The sub-modules that `shard` took apart."""
    return [part for part in module.modules() if hasattr(part, "set_requires_gradient_sync")]


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
