"""What `python -m backbones` does: every model with its cost, one drawn, a checkpoint rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.table import Table

import attention_zoo
import backbones
from attention_zoo import Grid
from backbones.checkpoint import CLASSIFIER, read, translate
from backbones.residual import Block

CLASSES, IMAGE_CLASSES = 400, 1000  # of the models that are listed: Kinetics-400's, and ImageNet-1k's


def on_meta(name: str) -> backbones.Backbone:
    """A model without weights, to be counted."""
    classes = IMAGE_CLASSES if backbones.config(name).clip.t == 1 else CLASSES
    with torch.device("meta"):
        return backbones.create(name, classes)


def listing(console: Console) -> None:
    """All models, a line each."""
    table = table_of("model", "M params", "GMAC a view", "input", "paper", "code (licence)", "weights of the authors")
    for name in backbones.names():
        model, origin = on_meta(name), backbones.origin(name)
        source = (origin.paper, f"{origin.code} ({origin.licence})", origin.weights)
        table.add_row(name, millions(model), giga(model.macs()), size_of(model), *source)
    console.print(table)
    console.print(f"Classifiers are of {CLASSES} classes, of image models {IMAGE_CLASSES}.")


def table_of(*titles: str) -> Table:
    """Without a head, of columns that fold in a narrow terminal."""
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def describe(name: str, console: Console) -> None:
    """The stages of a model, and what each costs."""
    model, origin = on_meta(name), backbones.origin(name)
    counted = (
        f"{millions(model)} M parameters, {giga(model.macs())} G multiply-adds a view, {model.num_classes} classes"
    )
    console.print(f"{name}: {counted}")
    source = f"{origin.paper}; code: {origin.code} ({origin.licence}); weights: {origin.weights}"
    console.print(f"input {size_of(model)}; {source}")
    table = table_of("stage", "map", "tokens", "width", "blocks", "M params", "GMAC (share)")
    left, macs_left = parameters(model), model.macs()
    for number, (grid, dim, blocks) in enumerate(stages(model), 1):
        macs, size = sum(block.macs() for block in blocks), sum(map(parameters, blocks))
        left, macs_left = left - size, macs_left - macs
        schemes = ", ".join(dict.fromkeys(map(scheme_of, blocks)))
        tokens = str(Grid(*grid).tokens + blocks[-1].prefix)
        cells = ("x".join(map(str, grid)), tokens, str(dim), f"{len(blocks)} {schemes}", f"{size / 1e6:.3f}")
        table.add_row(str(number), *cells, f"{giga(macs)} ({macs / model.macs():.0%})")
    rest = (
        "embedding, positions, classifier",
        f"{left / 1e6:.3f}",
        f"{giga(macs_left)} ({macs_left / model.macs():.0%})",
    )
    table.add_row("", "", "", "", *rest)
    console.print(table)


def stages(model: backbones.Backbone) -> Iterator[tuple[Sequence[int], int, list[Block]]]:
    """Map (after it), width and blocks of each stage."""
    sizes, blocks = model.config.sizes(), list(model.blocks().values())
    if sum(sizes["blocks"]) != len(blocks):  # the same blocks on two paths
        yield blocks[0].grid, sizes["widths"][0], blocks
        return
    for count, dim, grid in zip(sizes["blocks"], sizes["widths"], sizes["tokens"], strict=True):
        yield grid, dim, blocks[:count]
        blocks = blocks[count:]


def size_of(model: backbones.Backbone) -> str:
    return "x".join(map(str, model.clip))


def scheme_of(block: Block) -> str:
    """The schemes that a block attends with, by their registered names, or by what a family's own says it is `like`."""
    names = {attention_zoo.schemes.get(name): name for name in attention_zoo.schemes.names()}
    schemes = (names.get(type(module)) or getattr(module, "like", None) for module in block.modules())
    return " + ".join(dict.fromkeys(filter(None, schemes)))


def convert(file: str, name: str, out: str, console: Console) -> None:
    """The number of classes is that of the file's classifier."""
    tensors, _ = read(backbones.checkpoint.Path(file))
    ours = translate(tensors, backbones.config(name).family).tensors
    classes = [len(tensor) for key, tensor in ours.items() if key.startswith(CLASSIFIER)]
    model = backbones.create(name, classes[-1] if classes else 0)
    report = backbones.load_checkpoint(model, file)
    path = backbones.save_checkpoint(model, out)
    console.print(f"{file}: layout {report.layout}, {len(report.loaded)} tensors, now in {path}")
    if report.note:
        console.print(f"Note: {report.note}.")


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def millions(model: torch.nn.Module) -> str:
    return f"{parameters(model) / 1e6:.3f}"


def giga(macs: int) -> str:
    return f"{macs / 1e9:.2f}"
