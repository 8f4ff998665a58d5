"""TimeSformer out of the parts of this project, to be set beside the one of transformers on the same weights.

The scheme `divided` stands in a pyramid, which has no class token and norms the tokens once before both attentions.
TimeSformer carries a class token through every block and norms its residual stream twice, so the scheme cannot hold its
weights. Here the code that the scheme consists of, `self_attention` over times and then over places, is put into
TimeSformer's own block; the MLP is the one of all models here; the rest of the block is as in its released code.

Source: Bertasius et al., TimeSformer, arXiv:2102.05095, and facebookresearch/TimeSformer at commit a5ef29a7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo.kernels import AUTO
from attention_zoo.sequence import self_attention
from backbones.mlp import Mlp

EPS = 1e-6
RENAMES = (  # names of transformers' TimesformerModel, and ours
    (r"^embeddings\.patch_embeddings\.projection\.", "patch."),
    (r"^embeddings\.cls_token$", "class_token"),
    (r"^embeddings\.position_embeddings$", "places"),
    (r"^embeddings\.time_embeddings$", "times"),
    (r"^encoder\.layer\.(\d+)\.temporal_layernorm\.", r"blocks.\1.time_norm."),
    (r"^encoder\.layer\.(\d+)\.temporal_attention\.attention\.qkv\.", r"blocks.\1.time.qkv."),
    (r"^encoder\.layer\.(\d+)\.temporal_attention\.output\.dense\.", r"blocks.\1.time.proj."),
    (r"^encoder\.layer\.(\d+)\.temporal_dense\.", r"blocks.\1.time_fc."),
    (r"^encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.space_norm."),
    (r"^encoder\.layer\.(\d+)\.attention\.attention\.qkv\.", r"blocks.\1.space.qkv."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.space.proj."),
    (r"^encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.mlp_norm."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
)


class Projections(nn.Module):
    """Those of one of the two attentions."""

    def __init__(self, dim: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)


class Block(nn.Module):
    """Attention over times, a linear map, attention over places with the class token, MLP; each residual."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, kernel: str):
        super().__init__()
        self.num_heads, self.kernel = num_heads, kernel
        self.time_norm, self.time, self.time_fc = nn.LayerNorm(dim, EPS), Projections(dim), nn.Linear(dim, dim)
        self.space_norm, self.space = nn.LayerNorm(dim, EPS), Projections(dim)
        self.mlp_norm = nn.LayerNorm(dim, EPS)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, x: Float[Tensor, "b 1+t*n d"], t: int) -> Float[Tensor, "b 1+t*n d"]:
        """The class token, then the tokens, frame by frame."""
        first, x = x[:, :1], x[:, 1:].unflatten(1, (t, -1))
        over_time = self._attend(rearrange(self.time_norm(x), "b t n d -> (b n) t d"), self.time)
        x = x + rearrange(self.time_fc(over_time), "(b n) t d -> b t n d", b=len(x))
        frames = torch.cat([first.expand(-1, t, -1)[:, :, None], x], dim=2)
        y = self._attend(self.space_norm(frames).flatten(0, 1), self.space).unflatten(0, (-1, t))
        first, x = first + y[:, :, 0].mean(1, keepdim=True), x + y[:, :, 1:]
        x = torch.cat([first, x.flatten(1, 2)], dim=1)
        return x + self.mlp(self.mlp_norm(x))

    def _attend(self, tokens: Float[Tensor, "s n d"], weights: Projections) -> Float[Tensor, "s n d"]:
        return self_attention(tokens, weights.qkv, weights.proj, self.num_heads, kernel=self.kernel)


class TimeSformer(nn.Module):
    """From a clip `b 3 t h w` to the normed class token."""

    def __init__(
        self,
        frames: int,
        size: int,
        *,
        patch: int = 16,
        dim: int = 768,
        num_heads: int = 12,
        depth: int = 12,
        mlp_ratio: int = 4,
        kernel: str = AUTO,
    ):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.places = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, dim))
        self.times = nn.Parameter(torch.zeros(1, frames, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, kernel) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, clip: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d"]:
        b, _, t, _, _ = clip.shape
        x = self.patch(rearrange(clip, "b c t h w -> (b t) c h w"))
        x = rearrange(x, "(b t) d h w -> b t (h w) d", t=t) + self.places[:, None, 1:] + self.times[:, :, None]
        first = repeat(self.class_token + self.places[:, :1], "1 1 d -> b 1 d", b=b)
        x = torch.cat([first, x.flatten(1, 2)], dim=1)
        for block in self.blocks:
            x = block(x, t)
        return self.norm(x[:, 0])


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a `TimesformerModel` under our names. Raises: KeyError for a name that is not known."""
    ours = {}
    for name, tensor in state.items():
        new = next((re.sub(pattern, to, name) for pattern, to in RENAMES if re.search(pattern, name)), None)
        if new is None:
            raise KeyError(f"no weight of a TimesformerModel is known as {name!r}")
        ours[new] = tensor
    return ours
