"""Laws that every attention scheme obeys, as functions: tests draw cases for them, `check` runs them on one scheme.

A scheme of another package is checked with `python -m attention_zoo check NAME`, and before it is timed: a scheme whose
`macs()` or `reach()` is wrong would stand in a table beside schemes for which both are right.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import attention_zoo.windows
from attention_zoo.grid import Grid
from attention_zoo.scheme import build, schemes, use_kernel

GRID, PADDED = Grid(4, 6, 8), Grid(3, 7, 5)  # no axis has the length of another; the second fits no even window
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@dataclass
class Case:
    """A scheme with sizes and options; `prefix` class tokens come before the map."""

    name: str
    grid: Grid
    num_heads: int
    dim: int
    options: dict[str, Any]
    prefix: int = 0

    def build(self, **changes: Any) -> nn.Module:
        """The scheme with random parameters and statistics, in float64, evaluation mode."""
        options = dict(kernel="reference") | self.options | changes
        return randomised(build(self.name, self.dim, self.num_heads, self.grid, **options))

    def clips(self, count: int = 1) -> Tensor:
        return noise(count, *self.grid, self.dim, seed=count)

    def inputs(self, count: int = 1) -> list[Tensor]:
        """What `forward` takes: the map, and class tokens where there are any."""
        prefix = [noise(count, self.prefix, self.dim, seed=count + 9)] if self.prefix else []
        return [self.clips(count), *prefix]


def example(name: str, grid: Grid = GRID) -> Case:
    """The scheme with its own example of options."""
    return Case(name, grid, 2, 12, schemes.get(name).example)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randomised(module: nn.Module) -> nn.Module:
    """Zero-initialised parameters hide mistakes; so does a ReLU that is shut (hence the large BatchNorm bias)."""
    module = module.double().eval()
    with torch.no_grad():
        for i, value in enumerate([*module.parameters(), *module.buffers()]):
            if value.is_floating_point():
                value.copy_(0.4 * noise(*value.shape, seed=i))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm3d):
                part.running_var.abs_().add_(0.5)
                part.bias.add_(3)
    return module


def flat(y: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """What `forward` gives, as class tokens and map in a row, "b n d"."""
    return y.flatten(1, 3) if isinstance(y, Tensor) else torch.cat([y[1], y[0].flatten(1, 3)], dim=1)


def check_shape_and_dtype(case: Case) -> None:
    """The result has the shape that out_grid and out_dim say, and the format of the input."""
    module = case.build(kernel="auto")
    expected = (2, *module.out_grid, module.out_dim)
    for dtype in DTYPES:
        inputs = [x.to(dtype) for x in case.inputs(2)]
        result = module.to(dtype)(*inputs)
        y, *prefix = (result,) if isinstance(result, Tensor) else result
        assert (tuple(y.shape), y.dtype) == (expected, dtype), f"{tuple(y.shape)}, {y.dtype}; said: {expected}, {dtype}"
        assert [tuple(p.shape) for p in prefix] == [(2, case.prefix, module.out_dim)] * bool(case.prefix)
        assert flat(result).isfinite().all(), f"numbers that are not finite in {dtype}"


def check_clips_of_a_batch_never_mix(case: Case) -> None:
    """A clip's result does not depend on the other clips of its batch."""
    module, inputs = case.build(), case.inputs(3)
    alone = [flat(module(*(x[i : i + 1] for x in inputs))) for i in range(3)]
    assert_close(flat(module(*inputs)), torch.cat(alone), rtol=1e-9, atol=1e-9)


def check_evaluation_is_deterministic(case: Case) -> None:
    """The same clip gives the same result, bit for bit."""
    module, inputs = case.build(kernel="auto"), case.inputs()
    assert torch.equal(flat(module(*inputs)), flat(module(*inputs))), "two runs differ"


def check_every_parameter_gets_gradient(case: Case) -> None:
    """Every parameter but those that are said to be inert can change the result."""
    # Not on the drawn grid: a softmax over a single key gives its query none.
    for grid in (GRID, PADDED):
        module = example(case.name, grid).build(kernel="auto")
        y = module(noise(2, *grid, 12))
        if y.requires_grad:  # there are parameters
            (y * noise(*y.shape, seed=1)).sum().backward()
        silent = {name for name, p in module.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}
        assert silent == set(module.inert), f"without gradient: {sorted(silent)}; said: {sorted(module.inert)}"


def check_macs_equal_the_counter(case: Case) -> None:
    """macs() is what PyTorch's own counter counts, with class tokens and without."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        module = build(case.name, case.dim, case.num_heads, case.grid, kernel="reference", **case.options).eval()
        module(*(torch.empty(2, *x.shape[1:]) for x in case.inputs()))
    macs = module.macs(case.prefix) if case.prefix else module.macs()
    assert type(macs) is int, f"macs() is {macs!r}, not a whole number"
    counted = counter.get_total_flops() / 4  # two per multiply-add, two clips
    assert counted == macs, f"macs() says {macs}, counted are {counted:g}"


def check_reach_is_where_gradient_flows(case: Case) -> None:
    """reach() is True where an input token has a gradient from an output token, and nowhere else."""
    module, inputs = case.build(), [x.requires_grad_() for x in case.inputs()]
    outputs = flat(module(*inputs))[0] @ noise(module.out_dim, seed=2)
    one_each = torch.eye(len(outputs), dtype=outputs.dtype)
    grads = torch.autograd.grad(outputs, inputs, one_each, is_grads_batched=True, allow_unused=True)
    grads = [torch.zeros(len(outputs), x.numel()) if g is None else g for x, g in zip(inputs, grads, strict=True)]
    joined = torch.cat([gradient.reshape(len(outputs), -1, case.dim) for gradient in reversed(grads)], dim=1)
    flows, reach = (joined != 0).any(-1), module.reach(case.prefix) if case.prefix else module.reach()
    assert reach.shape == flows.shape, f"reach() is {tuple(reach.shape)}, not {tuple(flows.shape)}"
    unsaid, unused = (flows & ~reach).sum(), (reach & ~flows).sum()
    assert not unsaid, f"{unsaid} pairs of tokens have a gradient where reach() is False"
    assert not unused or module.loose_reach, f"{unused} pairs of tokens have no gradient where reach() is True"


def check_every_token_reaches_itself(case: Case) -> None:
    """Where the map keeps its grid, a token sees itself."""
    module = case.build()
    reach = module.reach()
    assert (reach.shape, reach.dtype) == ((module.out_grid.tokens, case.grid.tokens), torch.bool)
    assert module.out_grid != case.grid or reach.diagonal().all(), "a token does not reach itself"


def check_kernels_give_the_same(case: Case) -> None:
    """The kernel decides what computes, not what is computed."""
    module, inputs = case.build(), case.inputs(2)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        y = flat(use_kernel(module.double(), "reference")(*inputs))
        fused = flat(use_kernel(module.to(dtype), "sdpa")(*(x.to(dtype) for x in inputs)))
        assert_close(fused.double(), y, rtol=tolerance, atol=tolerance)


def check_options_survive_json(case: Case) -> None:
    """Options go into configs and records: as JSON they mean the same."""
    options = json.loads(json.dumps(case.options))
    rebuilt = build(case.name, case.dim, case.num_heads, list(case.grid), kernel="reference", **options)
    module = case.build()
    rebuilt.double().eval().load_state_dict(module.state_dict())
    assert torch.equal(flat(rebuilt(*case.inputs())), flat(module(*case.inputs()))), "another result"


def check_training_works_after_inference(case: Case) -> None:
    """What a scheme keeps from inference does not break training."""
    for function in vars(attention_zoo.windows).values():  # what was cached here was made by the checks before
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    module, inputs = case.build(kernel="auto"), case.inputs()
    with torch.inference_mode():
        before = flat(module(*inputs))
    y = flat(module(*(x.requires_grad_() for x in inputs)))
    y.sum().backward()
    assert_close(y.detach(), before.clone(), rtol=1e-9, atol=1e-9)


def check_step_folds_to_forward(case: Case) -> None:
    """Frame after frame gives what the clip gives, where a scheme has `step`."""
    module = case.build()
    if not hasattr(module, "step"):
        return
    x, *prefix = case.inputs(2)
    frames = x.split(1, dim=1)
    heads = prefix[0].chunk(len(frames), dim=1) if prefix else [None] * len(frames)
    state, results = None, []
    for frame, head in zip(frames, heads, strict=True):
        y, state = module.step(frame, head, state)
        results.append(y if isinstance(y, tuple) else (y, frame[:, :0, 0, 0]))
    folded = torch.cat([y for y, _ in results], dim=1), torch.cat([head for _, head in results], dim=1)
    assert_close(flat(folded), flat(module(x, *prefix)), rtol=1e-9, atol=1e-9)


LAWS = [law for name, law in list(globals().items()) if name.startswith("check_")]


def cases(name: str) -> Sequence[Case]:
    """The example on a grid that windows divide and on one that they do not; with class tokens where it takes them."""
    plain = [example(name), example(name, PADDED)]
    with_prefix = [replace(case, prefix=case.grid.t) for case in plain]
    return plain + (with_prefix if getattr(schemes.get(name), "takes_prefix", False) else [])


def check(name: str) -> str | None:
    """The first law that a scheme breaks and how, in one line; None if it obeys all. Raises: UnknownName."""
    for case in cases(name):
        for law in LAWS:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    law(copy.copy(case))
            except Exception as error:  # a scheme of others may fail in any way
                sentence, lines = (law.__doc__ or "").splitlines()[0], str(error).strip().splitlines()
                size = "x".join(map(str, case.grid)) + (f" and {case.prefix} class tokens" if case.prefix else "")
                reason = lines[0] if lines else type(error).__name__
                return f"{name} on {size} breaks the law: {sentence} ({type(error).__name__}: {reason})"
    return None
