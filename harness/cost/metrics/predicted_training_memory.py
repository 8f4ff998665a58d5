"""Predicted bytes that a training step needs at its peak, from tensors without data: nothing runs, no device is needed.

A prediction, never to be mixed with measured memory: it sums the tensors that are alive, and knows neither what an
allocator loses nor what a library or a kernel takes for itself. On the CPU the input is left out, as in the measured
column; on CUDA it is in. PyTorch's tracker is a private module, so it may be missing in another version; and tensors
without data that claim to be on a GPU end the process where PyTorch has no GPU, so this has a process of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from attention_zoo import kernels
from harness.cost.build import build, example
from harness.cost.metrics import register
from harness.cost.training_step import TrainingStep
from harness.cost.workload import Workload
from harness.packages import late
from harness.spec.case import Case
from records.record import Measurement, Quantity

NAME = "predicted_training_memory"
PREDICTED = Quantity(NAME, "sized", "training memory, predicted", "bytes, predicted", "lower")


@register("predicted_training_memory", PREDICTED, timed=True, order=0, process=NAME, once=True)
def predicted_training_memory(workload: Workload) -> list[Measurement]:
    """The predicted peak of the second step of training, of the eager model on the device of the case."""
    case = workload.case
    details: dict[str, Any] = {"kernel_requested": case.kernel, **workload.surroundings()}
    try:
        details["kernel"] = _kernel(case)
        peak, parts = predict(case)
    except (ImportError, RuntimeError) as error:  # of every error that fake tensors and kernels raise
        text = " ".join(str(error).split())[:300]
        return [PREDICTED.absent(f"not predicted: {text or type(error).__name__}", details=details)]
    details |= {"how": "live tensors in FakeTensorMode, counted by torch's MemTracker", "parts_bytes": parts}
    return [PREDICTED.of([peak], details)]


def _kernel(case: Case) -> str:
    """Raises: KernelUnavailable, where there is nothing to predict."""
    if case.compile:
        raise kernels.KernelUnavailable("what a compiled step keeps is the compiler's choice; use compile=false")
    if case.mixed:
        raise kernels.KernelUnavailable("what autocast keeps beside float32 weights is not predicted; use mixed=false")
    kernel = kernels.resolve(case.kernel, torch.device(case.device), getattr(torch, case.dtype), backward=True)
    if kernel == "flex":
        raise kernels.KernelUnavailable("kernel flex is compiled when it runs, which tensors without data cannot")
    return kernel


def predict(case: Case) -> tuple[int, dict[str, int]]:
    """Bytes at the peak, and what they consist of.

    Raises: ImportError, without torch's tracker; RuntimeError, where an operator does not run without data.
    """
    model = build(case, device="meta").to(getattr(torch, case.dtype))
    with FakeTensorMode():
        _make_real(model, case.device)
        clips = example(case, device=case.device).to(getattr(torch, case.dtype))
        classes = torch.zeros(case.batch_size, dtype=torch.int64, device=case.device)
        return peak(TrainingStep(model, clips, classes))


def _make_real(model: nn.Module, device: str) -> None:
    """Give the tensors of a model on the meta device a place on `device`, as far as the mode around it makes them.

    Frozen parameters become buffers: the tracker asks every parameter for its gradient.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            tensor = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            if parameter.requires_grad:
                setattr(module, name, torch.nn.Parameter(tensor))
            else:
                delattr(module, name)
                module.register_buffer(name, tensor)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))


def peak(step: TrainingStep) -> tuple[int, dict[str, int]]:
    """Bytes of live tensors at the peak of a step after the first, and their parts. Inside of a FakeTensorMode.

    Raises: ImportError, without torch's tracker.
    """
    tracker_of_torch = late("torch.distributed._tools.mem_tracker")
    device = step.clips.device
    step.first()
    tracker = tracker_of_torch.MemTracker()
    tracker.track_external(step.model, step.optimizer, step.clips, step.targets)
    with tracker:
        step()
    snapshot = tracker.get_tracker_snapshot("peak")[device]
    parts = {getattr(kind, "value", kind).lower(): size for kind, size in snapshot.items()}
    total = parts.pop("total")
    if device.type == "cpu":
        total -= parts.pop("other")
    return total, parts
