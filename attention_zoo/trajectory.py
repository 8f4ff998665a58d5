"""Trajectory attention: a query finds one token in every frame, then attends over these; dearer than full attention."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from attention_zoo import cpu
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO, attend
from attention_zoo.projected import Projected, projected
from attention_zoo.scheme import register
from attention_zoo.windows import check_choice, grid_of

Approximation = Literal["orthoformer", "nystrom"]
STEPS = 6  # of the iterated inverse
QUERIES = 768  # of a call, below which PyTorch's fused attention on a CPU works on smaller blocks, a fifth slower


class Along(NamedTuple):
    """What the first step goes through: landmarks that ask, landmarks that are asked, what lies between these."""

    queries: Float[Tensor, "b m r c"]
    keys: Float[Tensor, "b m r c"]
    between: Float[Tensor, "b m r r"] | None


@register("trajectory")
class TrajectoryAttention(Projected):
    """Source: Patrick et al., Motionformer, arXiv:2106.05392, Sec. 3.2 and 3.3; code:
    facebookresearch/Motionformer@bf43d50c (Apache-2.0).

    1. For query n and frame f, x(n, f) = softmax over the places p of f of (q_n . k_fp / sqrt(c)) v_fp, per head.
    2. q' = proj_q(x(n, frame of n)); k', v' = proj_kv(x(n, .)), heads side by side.
    3. softmax over f of q' . k' / sqrt(c), of x(n, .) itself as in the released code, or, if `intended`, of v' as in
       the paper (released, the half of proj_kv for values is without effect); then proj.

    Patches never see a class token, which sees everything as in full attention: without one they are the same.

    With `landmarks` the first step goes through so many of them, for each head; they carry no gradient, as released.
    By `approximation` "orthoformer" (Sec. 3.4) they are queries, the first the longest (the released code draws it),
    then always the one whose largest absolute cosine with those chosen is least. By "nystrom", with which the paper
    compares it, they are means of runs of queries and of keys along time, place after place, with an iterated inverse
    between. (The released branch fails at once; it is as its function computes.)

    Slower than `full` by its own arithmetic: on a CPU core, for inference at the maps of the tiny pyramid at
    32x224x224, 1.0 times (56x56 and 28x28 places), 1.4 (14x14) and 2.0 (7x7), since the first step runs over keys of
    one frame at a time, and each query then maps and weighs t tokens of its own; 1.02 times over all its blocks.
    """

    example = dict(intended=True)
    takes_prefix = True
    growth = {"frames": (2, 2), "size": (1, 2)}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        intended: bool = False,
        landmarks: int | None = None,
        approximation: Approximation = "orthoformer",
        kernel: str = AUTO,
    ):
        super().__init__(dim, num_heads, grid, kernel)
        check_choice("approximation", approximation, Approximation)
        if landmarks is not None and landmarks < 1:
            raise ValueError(f"landmarks {landmarks} must be a number of queries, 1 or more, or null for none")
        self.intended, self.landmarks, self.approximation = intended, landmarks, approximation
        self.proj_q, self.proj_kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)

    def forward(self, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b p d"] | None = None):
        t, n = grid_of(x).t, grid_of(x).tokens
        q, k, v = projected(x, self.qkv, self.num_heads)
        places = n // t
        along = None if self.landmarks is None else self._along(q, k, t)
        frame = torch.arange(n, device=x.device) // places
        keys, values = (part.unflatten(1, (t, places)).transpose(2, 3) for part in (k, v))  # b t m s c
        if cpu.inference(x):
            length = -(-n // max(1, n // QUERIES))
            parts = (
                self._attended_sooner(*part, keys, values, along)
                for part in zip(q.split(length, 1), frame.split(length), strict=True)
            )
            y = self.proj(cpu.joined(parts, x.flatten(1, 3), dim=1))
        else:
            y = self.proj(self._attended(q, frame, keys, values, along))
        y = y.view(x.shape)
        return y if prefix is None else (y, self._prefix(prefix, k, v))

    def _along(self, q: Float[Tensor, "b n m c"], k: Float[Tensor, "b n m c"], t: int) -> Along:
        count = min(self.landmarks, q.shape[1])
        if self.approximation == "nystrom":
            with torch.no_grad():
                queries, keys = (means_of_runs(x, t, count).transpose(1, 2) for x in (q, k))
                between = (queries @ keys.mT * q.shape[-1] ** -0.5).softmax(-1)
                return Along(queries, keys, iterated_inverse(between))
        with torch.no_grad():
            chosen = landmarks(q.transpose(1, 2), count)
            queries = q.transpose(1, 2).gather(2, chosen[..., None].expand(-1, -1, -1, q.shape[-1]))
        return Along(queries, queries, None)

    def _attended(self, q, frame, keys, values, along) -> Float[Tensor, "b n d"]:
        """What the queries of some tokens find, before the last projection."""
        tokens = self._tokens(q.transpose(1, 2), keys, values, along).transpose(1, 2)  # b n t d
        own_frame = tokens.gather(2, frame[:, None, None].expand(tokens.shape[0], -1, 1, tokens.shape[-1]))
        query = rearrange(self.proj_q(own_frame), "b n f (m c) -> (b n) m f c", m=self.num_heads)
        key, value = rearrange(self.proj_kv(tokens), "b n f (kv m c) -> kv (b n) m f c", kv=2, m=self.num_heads)
        if not self.intended:
            value = rearrange(tokens, "b n f (m c) -> (b n) m f c", m=self.num_heads)
        return rearrange(attend(query, key, value, kernel=self.kernel), "(b n) m 1 c -> b n (m c)", n=q.shape[1])

    def _attended_sooner(self, q, frame, keys, values, along) -> Float[Tensor, "b n d"]:
        """The same in another order, for inference: q'.(W x) is (W'q').x, a map of one query instead of t tokens.

        An offset of all keys of a query leaves its softmax as it is; the mean of mapped tokens is the mapped mean. Of
        what was found, which is large, a few queries at a time are mapped and weighed, so that it stays in the cache.
        """
        tokens = self._tokens(q.transpose(1, 2), keys, values, along)  # b t n d
        own_frame = tokens.gather(1, frame[:, None].expand(len(tokens), 1, -1, tokens.shape[-1]))[:, 0]
        query = self.proj_q(own_frame) * (self.dim // self.num_heads) ** -0.5
        length = cpu.chunk_length(query, query.shape[1], len(q) * self.dim * 2 * (tokens.shape[1] + self.num_heads))
        parts = zip(query.split(length, 1), tokens.split(length, 2), strict=True)
        return cpu.joined((self._weighed(*part) for part in parts), query, dim=1)

    def _weighed(self, query: Float[Tensor, "b n d"], tokens: Float[Tensor, "b t n d"]) -> Float[Tensor, "b n d"]:
        """The mean over frames of tokens, or of their maps, by scaled queries that are mapped instead of the keys."""
        heads = self.num_heads
        key_weight, value_weight = self.proj_kv.weight.view(2, heads, -1, self.dim)  # m c d
        mapped = torch.einsum("bnmc,mcd->bnmd", query.unflatten(-1, (heads, -1)), key_weight)
        weights = (mapped @ tokens.permute(0, 2, 3, 1)).softmax(-1)  # b n m t
        if self.intended:
            mean = torch.einsum("bnmd,mcd->bnmc", weights @ tokens.transpose(1, 2), value_weight).flatten(2)
            return mean + self.proj_kv.bias[self.dim :]
        by_head = tokens.unflatten(-1, (heads, -1))
        mean = weights[..., :1] * by_head[:, 0]
        for frame in range(1, tokens.shape[1]):
            mean.addcmul_(weights[..., frame, None], by_head[:, frame])
        return mean.flatten(2)

    def _tokens(self, q, keys, values, along) -> Float[Tensor, "b t n d"]:
        """The token that each query finds in each frame."""
        t = keys.shape[1]
        if along is None:
            queries = q[:, None].expand(-1, t, -1, -1, -1).flatten(0, 1)
            tokens = attend(queries, keys.flatten(0, 1), values.flatten(0, 1), kernel=self.kernel)
            return rearrange(tokens, "(b f) m n c -> b f n (m c)", f=t)
        queries = along.queries[:, None].expand(-1, t, -1, -1, -1).flatten(0, 1)
        at_landmarks = attend(queries, keys.flatten(0, 1), values.flatten(0, 1), kernel=self.kernel)
        shares = (q @ along.keys.mT * q.shape[-1] ** -0.5).softmax(-1)
        if along.between is not None:
            shares = shares @ along.between
        tokens = shares @ rearrange(at_landmarks, "(b f) m r c -> b m r (f c)", f=t)
        return rearrange(tokens, "b m n (f c) -> b f n (m c)", f=t)

    def _prefix(self, prefix: Float[Tensor, "b p d"], k: Tensor, v: Tensor) -> Float[Tensor, "b p d"]:
        projected = self.qkv(prefix).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q, k, v = projected[0], torch.cat([projected[1], k], 1), torch.cat([projected[2], v], 1)
        return self.proj(
            attend(*(part.transpose(1, 2) for part in (q, k, v)), kernel=self.kernel).transpose(1, 2).flatten(2)
        )

    def macs(self, prefix: int = 0) -> int:
        """Of q, k, v; of the tokens found; of proj_q, proj_kv and the softmax over frames; of proj."""
        n, d, t = self.grid.tokens, self.dim, self.grid.t
        finding = 2 * n * n * d
        if self.landmarks is not None:
            r = min(self.landmarks, n)
            finding = 3 * n * r * d + n * r * t * d
            if self.approximation == "nystrom":
                finding += r * r * d + (n * r * r + 4 * STEPS * r**3) * self.num_heads
            else:
                finding += n * (r - 1) * d
        return 5 * n * d * d + finding + 2 * n * t * d * d + 2 * n * t * d + prefix * (4 * d * d + 2 * (n + prefix) * d)

    def reach(self, prefix: int = 0) -> Bool[Tensor, "n n"]:
        """Everything; but patches see no class token."""
        reachable = super().reach(prefix)
        reachable[prefix:, :prefix] = False
        return reachable


def landmarks(q: Float[Tensor, "b m n c"], count: int) -> Int[Tensor, "b m r"]:
    """The longest query, then always the one whose largest absolute cosine with those chosen is the least."""
    unit = normalize(q, dim=-1)
    chosen = [q.square().sum(-1).argmax(-1)]
    worst = torch.zeros_like(q[..., 0])
    for _ in range(count - 1):
        latest = unit.gather(2, chosen[-1][..., None, None].expand(-1, -1, 1, q.shape[-1]))
        worst = torch.maximum(worst, (unit @ latest.mT)[..., 0].abs())
        worst = worst.scatter(-1, chosen[-1][..., None], torch.inf)  # not twice, rounded or not
        chosen.append(worst.argmin(-1))
    return torch.stack(chosen, -1)


def means_of_runs(x: Float[Tensor, "b n m c"], t: int, count: int) -> Float[Tensor, "b r m c"]:
    """Of `count` runs of tokens in the order of places, all times of a place together; later runs may be one longer."""
    n = x.shape[1]
    short, first_long = n // count, count - n % count
    place = torch.arange(n, device=x.device)
    run = torch.where(
        place < first_long * short, place // short, first_long + (place - first_long * short) // (short + 1)
    )
    lengths = short + (torch.arange(count, device=x.device) >= first_long)
    by_place = x.unflatten(1, (t, -1)).transpose(1, 2).flatten(1, 2)
    return x.new_zeros(x.shape[0], count, *x.shape[2:]).index_add(1, run, by_place) / lengths[:, None, None]


def iterated_inverse(matrix: Float[Tensor, "b m r r"]) -> Float[Tensor, "b m r r"]:
    """Of a matrix whose rows add up to 1; source: Xiong et al., Nystroemformer, arXiv:2102.03902, Eq. 11."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    inverse = matrix.mT / matrix.sum(-2).amax(-1)[..., None, None]
    for _ in range(STEPS):
        product = matrix @ inverse
        inverse = inverse / 4 @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    return inverse
