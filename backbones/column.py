"""What models have in common whose blocks stand in one column, and the block that most of them are made of."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo import Grid, Tokens
from attention_zoo.values import integer
from attention_zoo.windows import grid_of
from backbones.family import Backbone
from backbones.parts import DropPath, channels_last, through
from backbones.residual import Attend, Block, PerToken, Residual


class PreNormBlock(Block):
    """Attention, then MLP; each normed before and added to its input, with its own draw of stochastic depth.

    Args:
        out_dim: what attention makes of the width `dim`, where it changes it; `skip` is then the way around it.
        norm_last: the sums are normed instead of what goes in.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid,
        prefix: int,
        attention: nn.Module,
        mlp: nn.Module,
        drop_path: float | int = 0.0,
        *,
        out_dim: int | None = None,
        eps: float = 1e-5,
        skip: nn.Module | None = None,
        norm_last: bool = False,
    ):
        super().__init__(grid, prefix)
        self.norm1, self.attention = nn.LayerNorm(dim, eps), attention
        self.norm2, self.mlp, self.drop_path = nn.LayerNorm(out_dim or dim, eps), mlp, DropPath(drop_path)
        self.skip, self.norm_last = skip, norm_last

    def residuals(self) -> tuple[Residual, Residual]:
        return (
            Residual("attention", self.norm1, Attend(self.attention), self.skip, self.drop_path, self.norm_last),
            Residual("mlp", self.norm2, PerToken(self.mlp), None, self.drop_path, self.norm_last),
        )


class Classified(Backbone):
    """A backbone that ends in `norm`, `dropout` and `classifier`.

    Args:
        config: has `clip`, `in_channels` and `activation_checkpointing`.
        num_classes: 0 for no classifier; `forward` then returns the pooled features.
    """

    def __init__(self, config: Any, num_classes: int):
        super().__init__()
        self.num_classes = integer("num_classes", num_classes, least=0)
        self.clip, self.in_channels = config.clip, config.in_channels
        self.activation_checkpointing = config.activation_checkpointing

    def end_in(self, norm: nn.Module, dim: int, dropout: float) -> None:
        """The last parts; `dim` is the width of what is classified."""
        self.norm, self.dropout = norm, nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, self.num_classes) if self.num_classes else None

    def channels_last(self, clip: Tensor) -> Float[Tensor, "b t h w i"]:
        """A compiler is told the sizes of the clip here where schemes fix those of their maps.

        From a map alone it does not find them, and simplifies what they make of each other for minutes.
        """
        x = channels_last(clip, self.in_channels, self.clip)
        if torch.compiler.is_compiling() and any(getattr(module, "fixed_map", False) for module in self.modules()):
            grid_of(x)
        return x

    def classified(self, pooled: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n k"]:
        return pooled if self.classifier is None else self.classifier(self.dropout(pooled))

    def classifier_macs(self, counted: bool) -> int:
        return self.classifier.weight.numel() if counted and self.classifier is not None else 0


class Column(Classified):
    """Patches become tokens in `embed`, and the blocks of `column` work on them."""

    embed: nn.Module
    column: nn.ModuleList

    @abstractmethod
    def embedded(self, clip: Tensor) -> Tokens:
        """What goes into the first block."""

    def tokens(self, clip: Tensor) -> Tokens:
        return through(self.column, self.embedded(clip), self)

    def blocks(self) -> dict[str, Block]:
        return {f"column.{b}": block for b, block in enumerate(self.column)}

    def macs(self, classifier: bool = True) -> int:
        return self.embed.macs() + sum(block.macs() for block in self.column) + self.classifier_macs(classifier)
