"""The optimizer of a recipe: which parameters learn at which rate and decay, and the rate at every step.

The rate is a pure function of the step (`lr_factor`), so a run that is resumed needs no state of a scheduler.

Sources: the training configurations of DualFormer and Video Swin, with what mmcv makes of them; TimeSformer's.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from harness.spec.recipe import Optimisation

# What wrapping (DDP, torch.compile, the student of token labelling) puts into names.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod\.)+|^(?:module\.)+")
STUDENT = re.compile(r"^student\.")
CLASSIFIERS = re.compile(r"^(?:classifier|position_head)\.")  # position_head: the student's, over positions

# Our names under which the released codes' rules look for theirs.
RELEASED_NAMES = (
    (re.compile(r"^classifier\."), "cls_head.fc_cls."),
    (re.compile(r"^position_head\."), "cls_head.token_linear."),
    (re.compile(r"^stages\.(\d+)\.position\."), r"backbone.pos_block.\1.proj.0."),
    (re.compile(r"^(.*)\.bias\.table$"), r"backbone.\1.relative_position_bias_table"),
    (re.compile(r"^"), "backbone."),
)
# Part of a name -> (which learning rate, whether it is decayed). Of the rules that match, the longest alone counts, as
# in mmcv. So `norm` never wins inside of the backbone, and the backbone's norms and biases ARE decayed, against the
# rule's intention; position encodings and bias tables learn at the classifier's rate.
RELEASED_RULES = {
    "relative_position_bias_table": ("lr", False),
    "absolute_pos_embed": ("lr", False),
    "pos_block": ("lr", False),
    "backbone": ("backbone_lr", True),
    "norm": ("lr", False),
    "": ("lr", True),
}


def parameter_groups(model: nn.Module, optimisation: Optimisation) -> list[dict[str, Any]]:
    """The groups of an optimizer, every trainable parameter in exactly one of them; "names" lists a group's.

    `optimisation.groups` says what belongs where:

    - "paper": the backbone at its rate, the classifier at its own; everything is decayed.
    - "code": the rules of the released configurations (`RELEASED_RULES`), as they act.
    - "plain": rates as in "paper"; tensors of one axis (norms, biases) are not decayed.

    Matrices that Muon steps are groups of their own, with "muon" true. Else groups of equal rate and decay are one.

    Raises: ValueError if nothing is to be trained.
    """
    by_settings: dict[tuple[float, float, bool], dict[str, Any]] = {}
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, parameter in trained:
        rate, decays = _settings(STUDENT.sub("", WRAPPERS.sub("", name)), parameter.ndim, optimisation.groups)
        muon = bool(optimisation.muon) and rate == "backbone_lr" and parameter.ndim == 2 and name.endswith(".weight")
        factor = optimisation.muon if muon else 1.0
        key = (factor * getattr(optimisation, rate), optimisation.weight_decay if decays else 0.0, muon)
        of_key = {"params": [], "names": [], "lr": key[0], "weight_decay": key[1]} | ({"muon": True} if muon else {})
        group = by_settings.setdefault(key, of_key)
        group["params"].append(parameter)
        group["names"].append(name)
    if not by_settings:
        raise ValueError("no parameter of the model requires a gradient: there is nothing to train")
    groups = list(by_settings.values())
    assert len({id(p) for group in groups for p in group["params"]}) == sum(len(g["params"]) for g in groups)
    assert sum(len(group["names"]) for group in groups) == len(trained)
    return groups


def released_rule(released_name: str) -> str:
    """The rule that decides about a parameter of a released code: the longest that its name contains."""
    return max((rule for rule in RELEASED_RULES if rule in released_name), key=len)


def _settings(name: str, axes: int, groups: str) -> tuple[str, bool]:
    """(which learning rate, whether the parameter is decayed), by its name in the bare model."""
    if groups == "code":
        pattern, released = next((p, r) for p, r in RELEASED_NAMES if p.match(name))
        return RELEASED_RULES[released_rule(pattern.sub(released, name, count=1))]
    rate = "lr" if CLASSIFIERS.match(name) else "backbone_lr"
    return rate, axes > 1 or groups == "paper"


def optimizer(model: nn.Module, optimisation: Optimisation) -> torch.optim.Optimizer:
    """AdamW, fused: one pass over the weights, no copies of them; with Muon for matrices; or SGD with momentum.

    Each group keeps its full rate as "initial_lr"; `set_lr` scales it.
    """
    groups = parameter_groups(model, optimisation)
    for group in groups:
        group["initial_lr"] = group["lr"]
    if optimisation.optimizer == "sgd":
        return torch.optim.SGD(
            groups, momentum=optimisation.momentum, nesterov=optimisation.nesterov and optimisation.momentum > 0
        )
    matrices = [group for group in groups if group.pop("muon", False)]
    others = [group for group in groups if not any(group is matrix for matrix in matrices)]
    adamw = torch.optim.AdamW(others, betas=optimisation.betas, eps=optimisation.eps, fused=True)
    if not matrices:
        return adamw
    return with_muon(adamw, matrices)


def with_muon(adamw: torch.optim.Optimizer, matrices: list[Any], **settings: float) -> Side:
    """Muon for `matrices` (tensors, or groups of them) beside AdamW for the rest.

    Its orthogonal steps are as large as AdamW's, so that rates and decay keep their meaning.
    """
    return Side(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **settings), adamw)


class Side(torch.optim.Optimizer):
    """Optimizers side by side, each with groups of its own, as one that has all groups and the state of all.

    Source of Muon: Jordan et al., 2024, kellerjordan.github.io/posts/muon; of its rate: Liu et al., Muon is Scalable
    for LLM Training, arXiv:2502.16982, as torch.optim.Muon has them.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:
        for part in self.parts:
            part.step(closure)


def lr_factor(step: int, steps_per_epoch: int, optimisation: Optimisation) -> float:
    """What the learning rates are multiplied by at a step (counted from 0).

    The schedule times a linear warm-up, which takes each step from `warmup_start` to 1 over a number of epochs that may
    be fractional. "cosine_per_epoch" is the released codes': ½(1 + cos(π epoch / epochs)) at the whole epoch. "cosine"
    and "linear" move at every step and reach their end after the last one.

    Raises: ValueError.
    """
    if step < 0 or steps_per_epoch < 1:
        raise ValueError(
            f"step {step} of {steps_per_epoch} steps per epoch; steps count from 0, an epoch has one or more"
        )
    epoch = step / steps_per_epoch
    factor = _schedule(epoch, optimisation)
    if epoch < optimisation.warmup_epochs:
        factor *= 1 - (1 - epoch / optimisation.warmup_epochs) * (1 - optimisation.warmup_start)
    return factor


def _schedule(epoch: float, optimisation: Optimisation) -> float:
    if optimisation.schedule == "step":
        return optimisation.milestone_factor ** sum(epoch >= milestone for milestone in optimisation.milestones)
    if optimisation.schedule == "cosine_per_epoch":
        epoch = math.floor(epoch)
    done = min(epoch / optimisation.epochs, 1.0)
    share = 1 - done if optimisation.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return optimisation.end_lr + (1 - optimisation.end_lr) * share


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate becomes its full rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
