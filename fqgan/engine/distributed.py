"""Process groups without ceremony: nothing to set up for one process, `torchrun` for more."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fqgan.base.errors import UserError, in_one_line
from fqgan.base.ranks import meeting_place, ranks
from fqgan.engine.devices import pick_device
from fqgan.engine.sharding import sharded_parts

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among the ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0


def start(name: str = "auto") -> World:
    """Join the process group that torchrun's environment describes, if any, and pick this rank's device. `UserError`
    where the environment contradicts itself, the ranks cannot meet, or there is no GPU for this one."""
    place, device = ranks(), pick_device(name).type
    if device not in ("cpu", "cuda") and place.size > 1:
        raise UserError(f"{place.size} ranks cannot share the device {device}: start one, or choose the device cpu")
    chosen = torch.device(device, place.local) if device == "cuda" else torch.device(device)
    if device == "cuda":
        if place.local >= torch.cuda.device_count():
            raise UserError(
                f"LOCAL_RANK is {place.local}, and this machine has {torch.cuda.device_count()} CUDA device(s): start "
                "no more ranks than GPUs"
            )
        torch.cuda.set_device(chosen)
    if place.size > 1:
        _meet("nccl" if device == "cuda" else "gloo")
    return World(place.rank, place.size, chosen)


def _meet(backend: str) -> None:
    global _control
    where = meeting_place()
    try:
        # the first collective waits for rank 0's slow start (weights, compilation), so the limit is generous
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
        _control = dist.new_group(backend="gloo", timeout=timedelta(minutes=30)) if backend != "gloo" else None
    except (dist.DistError, ValueError) as error:
        raise UserError(
            f"the ranks cannot meet at {where}: {in_one_line(error)}; a port in use needs another --master-port"
        ) from None


_control: Any = None
"""A group for a few numbers that no GPU has to wait for; None: the group of all else."""
_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """In here this rank is by itself: after another one was lost, nothing may wait for it."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def agree(value: int) -> int:
    """The largest of the ranks' values, on all of them; waits for no GPU."""
    if not is_distributed():
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, op=dist.ReduceOp.MAX, group=_control)
    return int(box)


def stop() -> None:
    """Leave the process group, if there is one."""
    global _control
    if is_distributed():
        with suppress(RuntimeError):
            dist.destroy_process_group()
        _control = None


def wrap(module: nn.Module, world: World) -> nn.Module:
    """DDP around a network where there are several ranks, unless its weights are sharded over them."""
    if world.size == 1 or sharded_parts(module):
        return module
    # the GAN's running statistics are written by one phase only: nothing to broadcast
    ids = [world.device.index] if world.device.type == "cuda" else None
    with warnings.catch_warnings():
        # its successor has another meaning so far, and torch 2.11 does not know it
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


@contextmanager
def no_sync(network: nn.Module) -> Iterator[None]:
    """A network's backward pass in here leaves gradients on their rank: for all micro-batches but the last."""
    with network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext():
        for part in sharded_parts(network):
            part.set_requires_gradient_sync(False)
        yield
        for part in sharded_parts(network):
            part.set_requires_gradient_sync(True)


def is_distributed() -> bool:
    """Whether more than one rank takes part."""
    return not _alone and dist.is_available() and dist.is_initialized()


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """Rank 0's picklable value, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_main(call: Callable[[], T]) -> T:
    """What `call` gives on rank 0, on every rank. Its `UserError` is raised there, once; the other ranks leave with
    the same exit status in silence."""
    if not is_distributed():
        return call()
    result, error = None, None
    if dist.get_rank() == 0:
        try:
            result = call()
        except UserError as caught:
            error = caught
    result, failed = broadcast_object((result, error is not None))
    if error is not None:
        raise error
    if failed:
        raise SystemExit(2)
    return result


def broadcast(tensor: Tensor) -> Tensor:
    """Rank 0's tensor on every rank, in place."""
    if is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor


def all_reduce_min(tensor: Tensor) -> Tensor:
    """Smallest of the ranks' values, in place."""
    if is_distributed():
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return tensor


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Average a tensor over ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks, in rank order, with gradient to this rank's own rows.

    (n, ...) -> (ranks * n, ...). The backward pass sums what every rank's loss says of these rows, so that DDP's
    average over ranks is the gradient of the ranks' mean loss.
    """
    if not is_distributed():
        return rows
    return _GatherRows.apply(rows)  # pyright: ignore[reportReturnType]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.n = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.n
        return grad[first : first + ctx.n]
