"""`python -m backbones`: every model with its cost; `describe NAME` draws one, `convert` rewrites a checkpoint.

Nothing is downloaded: the listing says where the authors publish weights, and `convert` reads a file that is there.
"""

from __future__ import annotations

import signal
import sys
from itertools import groupby

import torch
from rich.console import Console
from rich.table import Table

import attention_zoo
import backbones
from attention_zoo import UnknownName
from backbones.checkpoint import CLASSIFIER, CheckpointError, read, translate

USAGE = """python -m backbones                          every model: parameters, multiply-adds of a view, input, source
python -m backbones describe NAME            its stages
python -m backbones convert FILE NAME OUT    a checkpoint of a known layout, as OUT.safetensors under our names"""
CLASSES = 400  # of the models that are listed: Kinetics-400's


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 a wrong command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=140)
    try:
        match arguments:
            case []:
                listing(console)
            case ["describe", name]:
                describe(name, console)
            case ["convert", file, name, out]:
                convert(file, name, out, console)
            case ["-h" | "--help"]:
                print(USAGE)
            case _:
                raise ValueError(f"{' '.join(arguments)!r} is no command; there are:\n{USAGE}")
    except (UnknownName, ValueError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def on_meta(name: str) -> backbones.Backbone:
    """A model without weights, to be counted."""
    with torch.device("meta"):
        return backbones.create(name, CLASSES)


def listing(console: Console) -> None:
    """All models, a line each; counted with a classifier of 400 classes."""
    table = Table(
        "model", "M params", "GMAC a view", "input", "paper", "weights of the authors", box=None, pad_edge=False
    )
    for name in backbones.names():
        model, origin = on_meta(name), backbones.origin(name)
        frames, height, width = model.clip
        table.add_row(
            name, millions(model), giga(model.macs()), f"{frames}x{height}x{width}", origin.paper, origin.weights
        )
    console.print(table)


def describe(name: str, console: Console) -> None:
    """The stages of a model: blocks that share a map and a width, and what each stage costs."""
    model, origin = on_meta(name), backbones.origin(name)
    frames, height, width = model.clip
    console.print(
        f"{name}: {millions(model)} M parameters, {giga(model.macs())} G multiply-adds a view, {CLASSES} classes"
    )
    console.print(f"input {frames}x{height}x{width}; {origin.paper}; code: {origin.code} ({origin.licence})")
    table = Table(
        "map", "tokens", "width", "blocks", "attention", "M params", "GMAC", "share", box=None, pad_edge=False
    )
    for (grid, dim), blocks in groupby(model.blocks().values(), key=lambda block: (block.grid, norm_width(block))):
        same = list(blocks)
        macs = sum(block.macs() for block in same)
        size = sum(parameter.numel() for block in same for parameter in block.parameters())
        table.add_row(
            "x".join(map(str, grid)),
            str(grid.tokens + same[0].prefix),
            str(dim),
            str(len(same)),
            ", ".join(dict.fromkeys(scheme_of(block) for block in same)),
            f"{size / 1e6:.3f}",
            giga(macs),
            f"{macs / model.macs():.0%}",
        )
    console.print(table)


def norm_width(block: backbones.Block) -> int:
    """The width of the tokens that go into a block: what its first norm norms."""
    return block.residuals()[0].norm.normalized_shape[0]


def scheme_of(block: backbones.Block) -> str:
    """The schemes that a block attends with, by their registered names, or by what a family's own says it is `like`."""
    names = {attention_zoo.schemes.get(name): name for name in attention_zoo.schemes.names()}
    told = (names.get(type(module)) or getattr(module, "like", None) for module in block.modules())
    return " + ".join(dict.fromkeys(filter(None, told)))


def convert(file: str, name: str, out: str, console: Console) -> None:
    """The number of classes is that of the file's classifier."""
    tensors, _ = read(backbones.checkpoint.Path(file))
    ours = translate(tensors, backbones.config(name).family).tensors
    classes = [len(tensor) for key, tensor in ours.items() if key.startswith(CLASSIFIER)]
    model = backbones.create(name, classes[-1] if classes else 0)
    report = backbones.load_checkpoint(model, file)
    path = backbones.save_checkpoint(model, out)
    console.print(f"{file}: layout {report.layout}, {len(report.loaded)} tensors, now in {path}")


def millions(model: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.3f}"


def giga(macs: int) -> str:
    return f"{macs / 1e9:.2f}"


if __name__ == "__main__":
    for name in ("SIGINT", "SIGPIPE"):  # an end without a traceback: Ctrl-C, or a reader that has had enough
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter
    raise SystemExit(main())
