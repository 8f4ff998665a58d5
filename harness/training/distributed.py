"""One run on several devices: PyTorch's own DistributedDataParallel and `fully_shard`, started by `torchrun`.

`Group` is what the loop knows of it; a run in one process has a group of one, in which all of this does nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones.family import Backbone, create
from backbones.sets import as_in
from harness.training.job import Job, TrainingError

if dist.is_available():  # in this build of torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

TIMEOUT = timedelta(minutes=30)  # one process may decode, save or evaluate while the others wait


@dataclass(frozen=True)
class Group:
    """The processes of one run, as one of them sees it. `control` carries decisions, without the devices' queues."""

    rank: int
    world: int
    device: torch.device
    strategy: str = "single"
    control: Any = None
    beside: int = 1  # of the processes, those on this machine

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agreed(self, decision: Any) -> Any:
        """The decision of the first process, in all of them."""
        if self.world == 1:
            return decision
        holder = [decision]
        dist.broadcast_object_list(holder, src=0, group=self.control)
        return holder[0]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether it is true in one of the processes at least."""
        if self.world == 1:
            return flags
        holder = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(holder, dist.ReduceOp.MAX, group=self.control)
        return tuple(map(bool, holder.tolist()))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, on the CPU."""
        values = values.detach().cpu()
        if self.world > 1:
            dist.all_reduce(values, group=self.control)
            values /= self.world
        return values

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in their order, in each of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values


@contextlib.contextmanager
def group(job: Job) -> Iterator[Group]:
    """Joins the processes that torchrun started; leaves them at the end.

    Raises: TrainingError, where the job's strategy and the way it was started do not fit.
    """
    world, started = int(os.environ.get("WORLD_SIZE", "1")), "RANK" in os.environ
    if job.strategy == "single":
        if world > 1:
            raise TrainingError(
                f"torchrun started {world} processes, but strategy is single; give strategy=ddp or fsdp"
            )
        yield Group(0, 1, torch.device(job.device))
        return
    if not started:
        raise TrainingError(
            f"strategy={job.strategy} needs processes to share the work: start them with "
            f"torchrun --nproc-per-node N -m harness.train ... strategy={job.strategy}"
        )
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device(job.device)
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"process {local} of this machine has no device of its own: there are {torch.cuda.device_count()} CUDA "
                f"devices; start at most that many with --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()
    if ours:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, **({"device_id": device} if device.type == "cuda" else {}))
    control = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=TIMEOUT)
    try:
        yield Group(rank, world, device, job.strategy, control, int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    finally:
        if ours:
            dist.destroy_process_group()


def wrapped(model: nn.Module, group: Group, blocks: list[nn.Module]) -> nn.Module:
    """The module whose forward pass the loop calls; its gradients become those of all processes together.

    `blocks` are what `fsdp` gathers one at a time. Running statistics of BatchNorm stay each process's own while
    training (as in DualFormer's released code) and are averaged where they are used: see `average_statistics`.
    """
    if group.strategy == "ddp":
        devices = [group.device.index] if group.device.type == "cuda" else None
        ddp = nn.parallel.DistributedDataParallel
        renamed = "forward_sync_buffers"  # from PyTorch 2.13 on; the name before that warns there
        option = renamed if renamed in inspect.signature(ddp).parameters else "broadcast_buffers"
        return ddp(model, device_ids=devices, gradient_as_bucket_view=True, **{option: False})
    if group.strategy == "fsdp":
        mesh = init_device_mesh(group.device.type, (group.world,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


@contextlib.contextmanager
def accumulating(module: nn.Module, group: Group, last: bool) -> Iterator[None]:
    """Around one micro-batch: only the last one of a step exchanges gradients."""
    if group.strategy == "ddp" and not last:
        with module.no_sync():
            yield
        return
    if group.strategy == "fsdp":
        module.set_requires_gradient_sync(last)
    yield


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that is spread over the processes; all of them must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: Tensor, example: Tensor) -> Tensor:
    """A full tensor, spread over the processes as `example` is."""
    if not hasattr(example, "full_tensor"):
        return tensor.to(example.device)
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements)


def average_statistics(model: nn.Module, group: Group) -> None:
    """Sets the running statistics of every BatchNorm to their mean over the processes.

    Each update is linear, so that the mean of all is what it is whenever, and however often, it is taken.
    """
    if group.world == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    if not buffers:
        return
    flat = group.mean(torch.cat([buffer.detach().double().cpu() for buffer in buffers]))
    with torch.no_grad():
        for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.to(buffer))


def plain(model: Backbone, group: Group, kernel: str) -> Backbone:
    """The model itself, or, where its weights are spread over the processes, a copy that has all of them."""
    if group.strategy != "fsdp":
        return model
    tensors = {name: whole(tensor).detach().clone() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        copy = as_in(create(model.config, model.num_classes, kernel=kernel), model)
    copy.load_state_dict(tensors, assign=True)
    for name, buffer in model.named_buffers():  # also those that follow from the config and stand in no checkpoint
        owner, _, last = name.rpartition(".")
        setattr(copy.get_submodule(owner), last, buffer.detach().clone())
    copy.learns = model.learns
    return copy.to(group.device)
