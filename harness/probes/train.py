"""One tiny model, two blocks of a scheme and all else the same, trained on one question and asked at each value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

import attention_zoo
from harness.probes.tasks import Task
from harness.training.optimizer import set_lr, with_muon

DIM, HEADS = 48, 2
LOUD = 8.0
PARTS = 10  # of the training, whose accuracies are kept
TEST_SEED = 10**6  # of the maps that all seeds and schemes are asked about


@dataclass(frozen=True)
class Effort:
    """Steps of training, each on `batch` maps, with the largest learning rate; maps `tested` for each dial value.

    `muon`: the rate at which Muon steps the matrices of the blocks, beside AdamW for the rest; 0: AdamW steps all.
    """

    steps: int = 300
    batch: int = 32
    rate: float = 6e-3
    tested: int = 256
    muon: float = 0.0

    @property
    def maps(self) -> int:
        """Trained on, in all."""
        return self.steps * self.batch


# Muon learns five of the questions in a fifth of the steps, but over five seeds not every time the motion; AdamW does.
FULL, QUICK = Effort(), Effort(steps=60, rate=1e-2, tested=64, muon=6e-2)


@dataclass(frozen=True)
class Block:
    """A scheme by name with its options, in one of the two blocks."""

    scheme: str
    options: dict[str, Any] = field(default_factory=dict)


class Probe(nn.Module):
    """Two blocks of attention and MLP on the map of a task; class scores are read at the query."""

    def __init__(self, task: Task, blocks: Sequence[Block], kernel: str = "auto"):
        super().__init__()
        self.grid = task.grid
        self.embed = nn.Linear(task.features, DIM)
        self.places = nn.ParameterList(nn.Parameter(_places(n)) for n in task.grid)
        self.attention = nn.ModuleList(
            attention_zoo.build(block.scheme, DIM, HEADS, task.grid, kernel=kernel, **block.options) for block in blocks
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
            for _ in blocks
        )
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in blocks)
        self.classifier = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, task.classes))

    def forward(self, x: Float[Tensor, "b n f"], query: Int[Tensor, " b"]) -> Float[Tensor, "b classes"]:
        t, h, w = self.places
        x = LOUD * self.embed(x).unflatten(1, self.grid) + t[:, None, None] + h[:, None] + w
        for attention, norm, mlp in zip(self.attention, self.norms, self.mlps, strict=True):
            if mlp is self.mlps[-1]:  # nothing but the query is read after the last attention
                x = (x + attention(norm(x))).flatten(1, 3)[torch.arange(len(x)), query]
            else:
                x = x + attention(norm(x))
            x = x + mlp(x)
        return self.classifier(x)

    def reach(self) -> Bool[Tensor, "n n"]:
        """What a token may depend on after both blocks; each block passes on what it has, too."""
        whole = torch.eye(self.grid.tokens)
        for attention in self.attention:
            whole = ((attention.reach().float() + torch.eye(self.grid.tokens)) @ whole > 0).float()
        return whole.bool()


def train(
    task: Task, blocks: Sequence[Block], seed: int, effort: Effort = FULL, kernel: str = "auto"
) -> dict[str, Any]:
    """Train and ask. The same seed gives the same training and maps to every scheme.

    Returns percentages: `by_dial` on maps that were not trained on, the same for all seeds; `reach` the share of what
    the answers depend on that two blocks can carry to the query; `curve` the accuracy on the maps of each tenth of the
    training, each seen before it was learnt from.

    Raises: ValueError, where the scheme cannot be built on the grid of the task.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Probe(task, blocks, kernel)
    generator = torch.Generator().manual_seed(seed)
    optimiser = _optimiser(model, effort)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    right = []
    for step in range(effort.steps):
        set_lr(optimiser, _warm_then_cosine(step / effort.steps))
        sample = task.sample(effort.batch, generator)
        scores = model(sample.x, sample.query)
        optimiser.zero_grad()
        F.cross_entropy(scores, sample.answer).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        right.append((scores.argmax(1) == sample.answer).float().mean())
    curve = [100 * part.mean().item() for part in torch.stack(right).tensor_split(PARTS)]
    return {"curve": [round(part, 1) for part in curve], **_tested(model.eval(), task, effort.tested)}


def _places(n: int) -> Float[Tensor, "n d"]:
    """Of an axis, as they begin: each its own direction, and one along which all are in order, so that two compare."""
    return 0.5 * (torch.randn(n, DIM) + torch.linspace(-3.0, 3.0, n)[:, None] * torch.randn(DIM))


def _optimiser(model: Probe, effort: Effort) -> torch.optim.Optimizer:
    blocks = {id(weight) for part in (model.attention, model.mlps) for weight in part.parameters() if weight.ndim == 2}
    matrices = [weight for weight in model.parameters() if effort.muon and id(weight) in blocks]
    others = [weight for weight in model.parameters() if not effort.muon or id(weight) not in blocks]
    adamw = torch.optim.AdamW(others, lr=effort.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    return with_muon(adamw, matrices, lr=effort.muon, weight_decay=0.01) if matrices else adamw


def _warm_then_cosine(done: float) -> float:
    """The share of the learning rate after a share of the steps: it rises for a fifth of them, then falls to 0."""
    return done / 0.2 if done < 0.2 else 0.5 * (1 + math.cos(math.pi * (done - 0.2) / 0.8))


@torch.no_grad()
def _tested(model: Probe, task: Task, count: int) -> dict[str, Any]:
    """Accuracy, and the share that is within reach, at each value of the dial."""
    generator, reach = torch.Generator().manual_seed(TEST_SEED), model.reach()
    by_dial, within = [], []
    for value in task.values:
        sample = task.sample(count, generator, value)
        right = model(sample.x, sample.query).argmax(1) == sample.answer
        by_dial.append(100 * right.float().mean().item())
        within.append(round(100 * (reach[sample.query] & sample.needs).sum().item() / sample.needs.sum().item(), 1))
    return {"by_dial": by_dial, "reach": within}
