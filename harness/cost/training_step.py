"""One step of training: forward in train mode, cross-entropy, backward, AdamW, gradients freed.

Everything is in the number format of the case, or, in a mixed one, in float32 with autocast to it, which is what
`harness.train` does. The loss is taken in float32, as training codes do.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.spec.case import Case

OPTIMIZER = {"lr": 1e-4, "weight_decay": 0.05, "fused": True}  # fused: one pass over the weights, no copies of them


class TrainingStep:
    """A model with an optimizer and one batch; call it for a whole step, or `phases` for its parts."""

    def __init__(
        self,
        model: nn.Module,
        clips: Tensor,
        targets: Tensor,
        *,
        compiled: bool = False,
        narrow: torch.dtype | None = None,
    ):
        self.model, self.clips, self.targets = model.train(), clips, targets
        self.scores = torch.compile(self.model) if compiled else self.model
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, **OPTIMIZER)
        self.autocast = torch.autocast(clips.device.type, narrow) if narrow else contextlib.nullcontext()
        self.loss: Tensor | None = None
        self.phases = {"forward": self.forward, "backward": self.backward, "optimizer": self.update}

    @property
    def optimizer_text(self) -> str:
        return f"AdamW({', '.join(f'{name}={value}' for name, value in OPTIMIZER.items())})"

    def eagerly(self) -> Tensor:
        """Class scores without compilation, with gradients on."""
        with self.autocast:
            return self.model(self.clips)

    def __call__(self) -> Tensor:
        """One step. Returns its loss, before the update."""
        for phase in self.phases.values():
            phase()
        return self.loss

    def forward(self) -> None:
        with self.autocast:
            scores = self.scores(self.clips)
        self.loss = cross_entropy(scores.float(), self.targets)

    def backward(self) -> None:
        self.loss.backward()
        self.loss = self.loss.detach()

    def update(self) -> None:
        self.optimizer.step()
        self.free_gradients()

    def free_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def first(self) -> dict[str, int]:
        """One step, after which the optimizer has its state. Returns the exact bytes of what a step keeps."""
        self.forward()
        self.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        sizes = {"parameters": size(self.model.parameters()), "buffers": size(self.model.buffers())}
        sizes["gradients"] = size(gradients)
        del gradients
        self.update()
        state = [value for entries in self.optimizer.state.values() for value in entries.values()]
        return sizes | {"optimizer_state": size(value for value in state if isinstance(value, Tensor))}


def targets(case: Case, batch_size: int, *, device: str | None = None) -> Tensor:
    """Random classes, the same for the same seed."""
    generator = torch.Generator().manual_seed(case.seed)
    return torch.randint(case.num_classes, (batch_size,), generator=generator).to(device or case.device)


def size(tensors) -> int:
    """Bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)
