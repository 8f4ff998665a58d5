"""What the last block of a model looks at: the attention of its class token, or of all tokens, over the frames.

Schemes lay their keys out as they please (windows, copies of a class token, pooled maps), so weights are brought back
to the tokens that they are of by the one thing that all schemes share: values are linear maps of tokens. A head's
weights are put on its values, and the gradient of that at a token is the weight that the token has, times the norm of
the map, which is the same for all tokens. Where values are pooled before, their weight is shared out over what was
pooled; where they are results of an attention before it, by the weights of that one. The picture is that of DualPath's
Fig. A1.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, interpolate

import attention_zoo.linear
import attention_zoo.recurrent_gate
from attention_zoo import kernels, use_kernel
from backbones.family import Backbone
from harness import precision


@dataclass(frozen=True)
class Looks:
    """Of one path through the last block: which frames of the clip it sees, and the weights on them, the largest 1."""

    path: str
    frames: tuple[int, ...]
    heat: Float[Tensor, "t h w"]
    reader: str  # whose attention it is, in words


class Call(NamedTuple):
    """One use of attention: its weights, the values, and the result, which gradients do not pass."""

    weights: Float[Tensor, "b m n s"]
    values: Float[Tensor, "b m s c"]
    result: Float[Tensor, "b m n c"]


def looks(model: Backbone, clip: Float[Tensor, "1 3 t h w"]) -> list[Looks]:
    """One for each path of the model's last block, one for a model of a single path.

    Raises: ValueError, where the last block has neither a class token nor a scheme that reaches the whole clip.
    """
    name, block = list(model.blocks().items())[-1]
    with precision.exact(), _inputs(block) as inputs, torch.no_grad():
        model(clip)
    if not inputs:
        raise ValueError(f"{name} uses no attention scheme")
    last = inputs[-1][0]
    last_inputs = [(x, prefix) for scheme, x, prefix in inputs if scheme is last]
    if last_inputs[0][1] is None and not last.reach().all():
        raise ValueError(
            f"{type(last).__name__} of {name} has no class token and reaches a part of the clip only; attention is "
            "drawn of models with class tokens, or whose last block reaches the whole clip"
        )
    reader = "all tokens, averaged" if last_inputs[0][1] is None else "the class token"
    maps = [weights_on(last, x, prefix) for x, prefix in last_inputs]
    paths = model.paths(maps) if hasattr(model, "paths") else {"": (tuple(range(clip.shape[2])), maps[0][0])}
    return [Looks(path, frames, _sized(heat, len(frames), clip), reader) for path, (frames, heat) in paths.items()]


def _sized(heat: Float[Tensor, "_t _h _w"], frames: int, clip: Tensor) -> Float[Tensor, "t h w"]:
    """In the size of the frames that it lies on; each patch in one piece, as it has one weight."""
    size = (frames, *clip.shape[3:])
    return interpolate(heat[None, None] / heat.max().clamp_min(1e-30), size=size, mode="nearest")[0, 0]


@contextlib.contextmanager
def _inputs(block: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor, Tensor | None]]]:
    """What the attention schemes of a block are given, in the order in which they are used."""
    inputs: list[tuple[nn.Module, Tensor, Tensor | None]] = []

    def watch(scheme: nn.Module, arguments: tuple) -> None:
        prefix = arguments[1] if len(arguments) > 1 else None
        inputs.append((scheme, arguments[0].detach(), None if prefix is None else prefix.detach()))

    with contextlib.ExitStack() as hooks:
        for module in block.modules():
            if hasattr(module, "reach"):
                hooks.enter_context(module.register_forward_pre_hook(watch))
        yield inputs


def weights_on(
    scheme: nn.Module, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b p d"] | None
) -> Float[Tensor, "b t h w"]:
    """How much of the class tokens' attention lies on each token of the map, averaged over heads and class tokens; of
    all tokens' attention, where there is no class token. With what lies on class tokens it adds up to 1."""
    kernel = scheme.kernel
    x = x.clone().requires_grad_()
    with torch.enable_grad(), _watched() as calls:
        use_kernel(scheme, "reference")
        try:
            out = scheme(x) if prefix is None else scheme(x, prefix)[1]
        finally:
            scheme.kernel = kernel
        probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
        results = [call.result for call in calls]
        reached = torch.autograd.grad((out * probe).sum(), results, retain_graph=True, allow_unused=True)
        readers = [
            torch.zeros(call.weights.shape[:3]) if g is None else (g != 0).any(-1)
            for call, g in zip(calls, reached, strict=True)
        ]
        total, heads = torch.zeros(x.shape[:4]).to(x), 0
        for number, rows in enumerate(readers):
            for on_tokens in _by_head(calls[: number + 1], rows, x):
                total += on_tokens
                heads += 1
    per = sum(int(rows.sum()) for rows in readers) / len(x) / max(heads, 1)  # rows of a head and clip
    return total.detach() / max(heads * per, 1e-30)


def _by_head(
    calls: list[Call], rows: Float[Tensor, "b m n"], x: Float[Tensor, "_b t h w d"]
) -> Iterator[Float[Tensor, "_b t h w"]]:
    """The weights of the last of some uses of attention on tokens, for each head that has any, where its results are
    worth `rows`."""
    last = calls[-1]
    for head in range(last.values.shape[1]):
        on_keys = (rows[:, head, :, None] * last.weights[:, head]).sum(1)
        if on_keys.any():
            yield _on_tokens(last.values, x, head, on_keys, calls[:-1])


def _on_tokens(
    values: Tensor, x: Tensor, head: int, on_keys: Float[Tensor, "b s"], before: list[Call]
) -> Float[Tensor, "_b t h w"]:
    """Weights on keys as weights on the tokens of which these are; where values are results of attention `before`, on
    the tokens that it weighs."""

    def pulled(weights: Tensor, source: Tensor) -> Tensor | None:
        probe = torch.zeros_like(values)
        probe[:, head] = weights[..., None]
        (gradient,) = torch.autograd.grad(values, source, probe, retain_graph=True, allow_unused=True)
        return None if gradient is None else gradient.norm(dim=-1)

    def share(source: Tensor) -> Tensor | None:
        norms = pulled(torch.ones_like(on_keys), source)  # the norm of the map, for a token that is a key once
        return None if norms is None else pulled(on_keys, source) / norms[norms > 0].min()

    if (direct := share(x)) is not None:
        return direct
    total = torch.zeros(x.shape[:4]).to(x)
    for number, call in enumerate(before, 1):
        if (rows := share(call.result)) is not None:
            total = sum(_by_head(before[:number], rows, x), total)
    return total


@contextlib.contextmanager
def _watched() -> Iterator[list[Call]]:
    """All that attend do it openly and are written down, wherever they took the function from."""
    calls: list[Call] = []

    def noted(weights: Tensor, values: Tensor) -> Tensor:
        result = (weights @ values).detach().requires_grad_()
        calls.append(Call(weights.detach(), values, result))
        return result

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, **_: object) -> Tensor:
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return noted((scores if bias is None else scores + bias).softmax(-1), v)

    def gated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (elu(q) + 1) @ (elu(k) + 1).mT
        return noted(weights / weights.sum(-1, keepdim=True), v)

    def linear(q: Tensor, k: Tensor, v: Tensor, least: float, angles: Tensor | None = None) -> Tensor:
        total = q @ k.sum(2)[..., None] + least
        turned = attention_zoo.linear.turned
        q, k = (q, k) if angles is None else (turned(q, angles), turned(k, angles))
        return noted(q @ k.mT / total, v)

    originals: dict[Callable, Callable] = {
        kernels.attend: attend,
        attention_zoo.recurrent_gate.linear_attention: gated,
        attention_zoo.linear.linear_attention: linear,
    }
    places = [
        (module, name, value)
        for module in list(sys.modules.values())
        for name in ("attend", "linear_attention")
        if callable(value := getattr(module, "__dict__", {}).get(name)) and value in originals
    ]
    for module, name, value in places:
        setattr(module, name, originals[value])
    try:
        yield calls
    finally:
        for module, name, value in places:
            setattr(module, name, value)
