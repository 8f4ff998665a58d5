"""Recurrent attention gate: frame after frame, each attends together with a state that holds what went before.

Cost and state do not grow with the clip: a new frame costs the same however many came before it.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import elu

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO, attend
from attention_zoo.projected import Projected
from attention_zoo.scheme import Mixed, register
from attention_zoo.sequence import heads, joined
from attention_zoo.windows import check_choice

Mix = Literal["sum", "concatenate"]
Form = Literal["linear", "softmax"]
State = Literal["attention", "gated"]
Start = Literal["zero", "learned"]


@register("recurrent_gate")
class RecurrentGate(Projected):
    """Source: Yang et al., Recurring the Transformer for Video Action Recognition (RViT), CVPR 2022, and its
    supplement; the authors released no code. What they state is that every block has projections of the frame and,
    started orthogonal, of the state before it, that output and state follow from both, and that attention is linear.
    The defaults are our reading of the rest, the options its alternatives.

    With u the tokens of a frame and h the state, both normed: queries, keys and values are qkv(u) + h_qkv(h);
    attention is phi(q) (phi(k)' v) / (phi(q) sum phi(k)) with phi(x) = elu(x) + 1; its projection is the result and the
    next state.

    Args:
        mix: "sum" as above; "concatenate" takes queries of the frame alone, and keys and values of both side by side.
        form: "linear" as above, or "softmax".
        state: "attention" as above; "gated" keeps g h + (1 - g) new with g = sigmoid(gate(u)).
        start: the state before the first frame.
        hidden_bias: whether the projections of the state have biases.
        truncate: frames through which gradients flow back; None for all.

    Class tokens are each frame's own, those of the first frame first.
    """

    example = {}
    takes_prefix = True
    growth = {"frames": (1, 1), "size": (1, 2)}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        mix: Mix = "sum",
        form: Form = "linear",
        state: State = "attention",
        start: Start = "zero",
        hidden_bias: bool = False,
        truncate: int | None = None,
        kernel: str = AUTO,
    ):
        super().__init__(dim, num_heads, grid, kernel)
        for name, value, allowed in (("mix", mix, Mix), ("form", form, Form), ("state", state, State)):
            check_choice(name, value, allowed)
        check_choice("start", start, Start)
        if truncate is not None and truncate < 1:
            raise ValueError(f"truncate {truncate} is not a number of frames from 1 on, or None for all")
        self.mix, self.form, self.truncate = mix, form, truncate
        self.h_norm = nn.LayerNorm(dim)
        self.h_qkv = nn.Linear(dim, (3 if mix == "sum" else 2) * dim, bias=hidden_bias)
        self.gate = nn.Linear(dim, dim) if state == "gated" else None
        self.start = nn.Parameter(torch.zeros(1, 1, dim)) if start == "learned" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each map of the state starts orthogonal (supplement, Sec. 3.2)."""
        with torch.no_grad():
            for part in self.h_qkv.weight.split(self.dim):
                nn.init.orthogonal_(part)
        if self.h_qkv.bias is not None:
            nn.init.zeros_(self.h_qkv.bias)

    def forward(self, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b p d"] | None = None) -> Mixed:
        t, p = x.shape[1], 0 if prefix is None else prefix.shape[1] // x.shape[1]
        frames = x.flatten(2, 3)
        frames = torch.cat([prefix.unflatten(1, (t, p)), frames], 2) if p else frames
        projected, state, results = self.qkv(frames), None, []  # of all frames at once: only the state needs turns
        for i in range(t):
            if self.truncate and i and i % self.truncate == 0:
                state = state.detach()
            y, state = self._turn(frames[:, i], projected[:, i], state)
            results.append(y)
        y = torch.stack(results, 1)
        maps = y[:, :, p:].unflatten(2, x.shape[2:4])
        return (maps, y[:, :, :p].flatten(1, 2)) if p else maps

    def step(
        self, x: Float[Tensor, "b 1 h w d"], prefix: Float[Tensor, "b p d"] | None, state: Tensor | None
    ) -> tuple[Mixed, Float[Tensor, "b n d"]]:
        """One frame after those that `state` has seen; None before the first."""
        p = 0 if prefix is None else prefix.shape[1]
        frame = x.flatten(1, 3)
        frame = torch.cat([prefix, frame], 1) if p else frame
        y, state = self._turn(frame, self.qkv(frame), state)
        maps = y[:, p:].view(x.shape)
        return ((maps, y[:, :p]) if p else maps), state

    def _turn(
        self, frame: Float[Tensor, "b n d"], qkv: Float[Tensor, "b n _"], state: Float[Tensor, "b n d"] | None
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Result and next state of one frame."""
        if state is None:
            state = torch.zeros_like(frame) if self.start is None else self.start + torch.zeros_like(frame)
        before = self.h_qkv(self.h_norm(state))
        if self.mix == "sum":
            q, k, v = heads(qkv + before, 3, self.num_heads)
        else:
            (q, k, v), (h_k, h_v) = heads(qkv, 3, self.num_heads), heads(before, 2, self.num_heads)
            k, v = torch.cat([k, h_k], 2), torch.cat([v, h_v], 2)
        y = linear_attention(q, k, v) if self.form == "linear" else attend(q, k, v, kernel=self.kernel)
        y = self.proj(joined(y))
        if self.gate is None:
            return y, y
        share = self.gate(frame).sigmoid()
        return y, share * state + (1 - share) * y

    def macs(self, prefix: int = 0) -> int:
        """Maps of frame and state, the result's map, the products of attention; all frames alike, the first too."""
        t, h, w = self.grid
        n, d = h * w + prefix // t, self.dim
        keys = n if self.mix == "sum" else 2 * n
        products = (n + keys) * d * d // self.num_heads if self.form == "linear" else 2 * n * keys * d
        maps = 4 * d + self.h_qkv.out_features + (0 if self.gate is None else d)
        return t * (n * d * maps + products)

    def reach(self, prefix: int = 0) -> Bool[Tensor, "n n"]:
        """A token depends on all tokens of its frame and of those before."""
        t, h, w = self.grid
        frame = torch.cat([torch.arange(t).repeat_interleave(n) for n in (prefix // t, h * w)])
        return frame[:, None] >= frame


def linear_attention(
    q: Float[Tensor, "b m n c"], k: Float[Tensor, "b m s c"], v: Float[Tensor, "b m s c"]
) -> Float[Tensor, "b m n c"]:
    """phi(q) (phi(k)' v) / (phi(q) sum phi(k)), phi(x) = elu(x) + 1: keys and values meet first, so that the cost is
    linear in the number of tokens. Source: Katharopoulos et al., arXiv:2006.16236, Eq. 5 and 7.
    """
    q, k = elu(q) + 1, elu(k) + 1
    total = (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
    return (q @ (k.mT @ v)) / total
