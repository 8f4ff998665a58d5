"""What the operators of a model belong to: one of the groups of `records.groups`.

A group follows from the module in which an operator runs and from the operator's name, so that any registered scheme is
split without being changed: a family says the kind of each of its parts, and inside of a scheme linear maps,
convolutions and norms are told apart by what they are.
"""

from __future__ import annotations

from torch import nn

from attention_zoo.registry import nearest
from backbones import kinds

KINDS = {  # what a family calls a part, and its group
    "attention": "attention",
    "skip": "attention",  # beside a branch that pools: its linear map and its pooling are told apart as in a scheme
    "mlp": "mlp",
    "adapter": "mlp",
    "norm": "norms",
    "embedding": "convolutions",
    "position": "convolutions",
    "classifier": "rest",
}
MOVES = {
    "copy_", "clone", "contiguous", "to", "_to_copy", "cat", "stack", "roll", "flip", "pad", "constant_pad_nd",
    "index", "index_select", "gather", "repeat", "fill_", "zero_", "zeros", "pixel_shuffle",
}  # fmt: skip
VIEWS = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "as_strided", "expand", "slice",
    "select", "narrow", "unsqueeze", "squeeze", "flatten", "unflatten", "unbind", "chunk", "split", "split_with_sizes",
    "empty", "empty_like", "empty_strided", "alias", "detach", "movedim",
}  # fmt: skip
LINEAR = {"linear", "mm", "addmm", "addmv", "mv", "_linear_pointwise"}


def groups_of(model: nn.Module) -> dict[str, str]:
    """The group of each module, by its name in the model; a scheme's own arithmetic is "attention".

    Raises: ValueError for a part of a kind that is in no group, and for one that names no kind.
    """
    part_kinds = kinds(model)
    for name, kind in part_kinds.items():
        if kind not in KINDS:
            raise ValueError(
                f"{name} is of the kind {kind!r}, which belongs to no group of operators; {nearest(kind, KINDS)}"
            )
    declared = {name: KINDS[kind] for name, kind in part_kinds.items()}
    groups = {"": "rest"}
    for name, module in model.named_modules():
        parent, _, _ = name.rpartition(".")
        if name:
            groups[name] = declared.get(name) or _by_type(module, groups[parent])
    return groups


def _by_type(module: nn.Module, inside: str) -> str:
    """By the kind of a module and the group that it is inside of."""
    kind = type(module).__name__.lower()
    if "norm" in kind and not any(module.children()):  # not a block or a head that begins with a norm
        return "norms"
    if inside != "attention":
        return inside
    if isinstance(module, nn.Linear):
        return "projections"
    parts = list(module.modules())
    pools = any(isinstance(part, nn.modules.conv._ConvNd) or "pool" in type(part).__name__.lower() for part in parts)
    return "convolutions" if pools and not any(isinstance(part, nn.Linear) for part in parts) else inside


def group(inside: str, operator: str) -> str:
    """The group of an operator, such as "aten::addmm", that runs in a module of the group `inside`.

    A copy is movement wherever it happens, and a norm a norm; what a linear map does to shapes is part of it.
    """
    name = operator.rpartition("::")[2].rpartition(".")[2]
    if name in MOVES:
        return "movement"
    if "norm" in name and name not in ("normal_", "linalg_vector_norm"):
        return "norms"
    if inside != "attention":
        return inside
    if "attention" in name:
        return "attention"
    if name in LINEAR:
        return "projections"
    if name in VIEWS:
        return "movement"
    return "convolutions" if "conv" in name or "pool" in name else "attention"


def macs_by_group(model: nn.Module, counts: dict) -> dict[str, int]:
    """Multiply-adds by group, of a FlopCounterMode's counts: of each module without those of the modules inside."""
    top, inside, macs = type(model).__name__, groups_of(model), {}
    for path, operators in counts.items():
        if path == "Global":
            continue
        outer = _outer(path, counts)
        for operator, flops in operators.items():
            for owner, sign in ((path, 1), (outer, -1)):
                if owner is not None:
                    kind = group(inside[owner[len(top) :].lstrip(".")], str(operator))
                    macs[kind] = macs.get(kind, 0) + sign * flops
    assert sum(macs.values()) == sum(counts["Global"].values()), "some operators ran outside of the model"
    assert all(flops % 2 == 0 for flops in macs.values()), "a counter counts multiply and add separately"
    return {name: flops // 2 for name, flops in macs.items() if flops}


def _outer(path: str, counts: dict) -> str | None:
    """The nearest module around `path` that was counted too."""
    while "." in path:
        path = path.rpartition(".")[0]
        if path in counts:
            return path
    return None
