"""What the operators of a model belong to: attention products, projections, MLP, norms, and so on.

A group follows from the module in which an operator runs and from the operator's name, so that any registered scheme is
split without being changed: the backbone says what is a block's attention and what its MLP, and inside of a scheme its
linear maps, convolutions and norms are told apart by their kind.
"""

from __future__ import annotations

from torch import nn

from backbones import kinds

GROUPS = {
    "attention": "products of attention: scores, softmax, weighted sum",
    "projections": "linear maps of attention: queries, keys, values, output",
    "mlp": "the MLP of each block, with its activation",
    "norms": "layer norms and batch norms",
    "convolutions": "patch embeddings, position encodings, pooling of keys",
    "movement": "data moved without arithmetic: copies, shifts, padding, concatenation",
    "rest": "residual sums, classifier, and between operators: Python, memory given back",
}

KINDS = {  # what a family calls a part, and its group
    "attention": "attention",
    "mlp": "mlp",
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
LINEAR = {"linear", "mm", "addmm", "addmv", "mv"}


def groups_of(model: nn.Module) -> dict[str, str]:
    """The group of each module, by its name in the model; a scheme's own arithmetic is "attention"."""
    told = {name: KINDS[kind] for name, kind in kinds(model).items()}
    found = {"": "rest"}
    for name, module in model.named_modules():
        parent, _, _ = name.rpartition(".")
        if name:
            found[name] = told.get(name) or _of_kind(module, found[parent])
    return found


def _of_kind(module: nn.Module, inside: str) -> str:
    """By the kind of a module and the group that it is inside of."""
    kind = type(module).__name__.lower()
    if "norm" in kind:
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
