"""From a case to a model with weights, the same for the same seed."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

import backbones
from attention_zoo import kernels
from harness.spec.case import Case


def build(case: Case, *, device: str | None = None, kernel: str | None = None) -> nn.Module:
    """The model of a case, in eval mode, with random weights of the case's seed in its dtype on its device.

    Weights that the initialisation leaves at zero are drawn too: zeros would hide a wrong kernel, since they pass
    unseen. The random state of the caller is not touched.
    """
    target = torch.device(device or case.device)
    config = backbones.read_config(case.config)
    with contextlib.ExitStack() as stack:
        if target.type == "meta":
            stack.enter_context(torch.device("meta"))
        else:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(case.seed)
        model = backbones.create(config, num_classes=case.num_classes, kernel=kernel or case.kernel)
        if target.type != "meta":
            fill_zeros(model)
            model = model.to(target, getattr(torch, case.dtype))
    if case.trainable != "all":
        backbones.learning(model, case.trainable)
    return model.eval()


def fill_zeros(model: nn.Module) -> None:
    """Draw the weights that are all zero: they would hide a wrong result, since zeros pass unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


def example(case: Case, *, batch_size: int | None = None, device: str = "meta") -> torch.Tensor:
    """An input of the case's shape without content, for counting."""
    clip = case.clip
    shape = (batch_size or case.batch_size, 3, clip.frames, clip.size, clip.size)
    return torch.empty(shape, device=device)


def unavailable(device_name: str, dtype_name: str = "float32", kernel: str = kernels.AUTO) -> str | None:
    """Why nothing can run here on such a device, in such numbers, on such a kernel; None if it can."""
    device, dtype = torch.device(device_name), getattr(torch, dtype_name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            hint = "use device=cpu or a CUDA build of torch"
            return f"device {device_name}: torch {torch.__version__} sees no CUDA device; {hint}"
        if (device.index or 0) >= torch.cuda.device_count():
            return f"device {device_name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0"
        if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
            return f"dtype bfloat16 is not supported by {torch.cuda.get_device_name(device)}; use float16 or float32"
    if kernel == kernels.AUTO:
        return None
    reason = kernels.missing(kernel, device, dtype)
    if reason is None:
        return None
    return f"kernel {kernel} cannot run here: {reason}; available: {', '.join(kernels.available(device, dtype))}"
