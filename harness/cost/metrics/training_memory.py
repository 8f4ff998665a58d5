"""Bytes that a training step needs at its peak, and what they consist of.

On CUDA the peak of torch's allocator, input included. On the CPU the growth of the process's resident set from just
before the model is built, input excluded, as for `peak_memory`. The step is one after the first, so that the optimizer
has its state. Parameters, gradients and optimizer state are exact sums over the tensors that are held; activations are
what remains of the peak, with everything that is held for a moment only and what the allocator loses. Where the peak
comes before the backward pass has made all gradients, these are too small by what is lacking of them.
"""

from __future__ import annotations

import torch
from torch import nn

from attention_zoo import kernels
from harness.cost import memory
from harness.cost.build import build
from harness.cost.metrics import get, register
from harness.cost.training_step import TrainingStep, size
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

PARTS = ("parameters", "gradients", "optimizer_state", "activations")
MEASURES = (
    Quantity("training_memory", "sized", "training memory", "bytes", "lower"),
    *(
        Quantity(f"training_{part}", "shared", f"{part.replace('_', ' ')} in training", "bytes", "lower")
        for part in PARTS
    ),
)


@register("training_memory", *MEASURES, timed=True, order=0, process="training", once=True)
def training_memory(workload: Workload) -> list[Measurement]:
    """Runs before the other metrics of its process, since it must see the process without a model.

    Raises: KernelUnavailable, where the case's kernel has no backward pass.
    """
    details = workload.what_ran()
    on_cuda = workload.device.type == "cuda"
    if workload.case.compile and not on_cuda:
        reason = f"{memory.COMPILERS_OWN}; use compile=false"
        return get("training_memory").missing(reason, retry=False, details=details)
    if on_cuda:
        step = workload.training
        parts = step.first()
        peak, how = memory.allocated(workload.device, step)
        parts["input"] = how["input_bytes"] = size([step.clips, step.targets])
    else:
        workload.input  # noqa: B018  (decoded here: it does not belong to the growth)
        _exercise_libraries(workload)
        peak, how, parts = memory.growth(lambda: workload.training.first(), lambda: workload.training())
    parts["activations"] = max(0, peak - sum(parts.values()))
    how |= {"buffers_bytes": parts["buffers"], "activations_are": "the peak minus all else, gradients in full"}
    how["optimizer"] = workload.training.optimizer_text
    values = {"training_memory": peak} | {f"training_{part}": parts[part] for part in PARTS}
    return [quantity.of([values[quantity.name]], details | how) for quantity in MEASURES]


def _exercise_libraries(workload: Workload) -> None:
    """Import and run everything once in miniature, so that libraries and threads are there before the baseline."""

    class Miniature(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.scores = nn.Conv3d(3, 16, 1), nn.LayerNorm(16), nn.Linear(16, 2)

        def forward(self, x):
            y = nn.functional.gelu(self.norm(self.conv(x).flatten(2).mT))[:, None]
            return self.scores(kernels.attend(y, y, y, kernel=workload.case.kernel).mean((1, 2)))

    build(workload.case, device="meta")
    model, x = Miniature().to(workload.device, workload.dtype), workload.input[:1, :, :2, :16, :16]
    TrainingStep(model, x, torch.zeros(1, dtype=torch.int64))()
