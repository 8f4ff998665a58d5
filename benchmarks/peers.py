"""Our speed against the best public implementation of a scheme: `python -m benchmarks.peers`.

Both sides hold the same weights and see the same clip in one process; that their outputs agree is checked before
anything is timed. They then run in turn, so that a slow minute of the machine hits both, forward and in training steps;
the figure is the median of the ratios of the pairs with its interval.

- divided: TimesformerModel of transformers, which installs beside any torch: `pip install transformers`. A pyramid's
  block cannot hold its weights, so our attention stands in TimeSformer's own block (benchmarks/timesformer.py).
- shifted_window: swin3d_t of torchvision, whose compiled part loads with the full torch build that it was made for
  only; elsewhere it is skipped. A torchvision that does not load keeps transformers from loading too: remove it then.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.case import DTYPES
from harness.options import Command, UsageError, option, run
from harness.speedup import TOLERANCE, in_turn, ratios
from reports.record import Measurement, Record, case_id, write_record

if TYPE_CHECKING:
    from torch import Tensor, nn

FORWARD, TRAINING = "forward", "training"
CLASSES = 400
RENAMES = (  # names of torchvision's SwinTransformer3d, and ours; features alternate stages and merging
    (r"^patch_embed\.", lambda m: "stages.0.embed."),
    (r"^features\.(\d+)\.(reduction|norm)\.", lambda m: f"stages.{(int(m[1]) + 1) // 2}.embed.{m[2]}."),
    (
        r"^features\.(\d+)\.(\d+)\.attn\.relative_position_bias_table$",
        lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.attention.bias.table",
    ),
    (r"^features\.(\d+)\.(\d+)\.attn\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.attention."),
    (r"^features\.(\d+)\.(\d+)\.mlp\.0\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.mlp.fc1."),
    (r"^features\.(\d+)\.(\d+)\.mlp\.3\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.mlp.fc2."),
    (r"^features\.(\d+)\.(\d+)\.norm", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.norm"),
    (r"^head\.", lambda m: "classifier."),
    (r"^norm\.", lambda m: "norm."),
)


class Absent(Exception):
    """The other implementation cannot be had here; the message says why."""


@dataclass
class Options:
    schemes: list[str] = option(["divided", "shifted_window"], "what to compare", choices=("divided", "shifted_window"))
    modes: list[str] = option([FORWARD, TRAINING], "what to time", choices=(FORWARD, TRAINING))
    frames: int | None = option(None, "of the clip; none: 8 for divided, 32 for shifted_window", least=1)
    size: int = option(224, "height and width in pixels; a multiple of 32", least=32)
    depth: int | None = option(None, "blocks, of each stage where there are stages; none: as published", least=1)
    batch_size: int = option(1, "clips at once", least=1)
    device: str = option("cpu", "cpu or cuda")
    dtype: str = option("float32", "number format of weights and clip", choices=DTYPES)
    kernel: str = option("auto", "what computes our attention")
    pairs: int = option(10, "runs of each side", least=1)
    threads: int | None = option(None, "CPU threads; none: one per physical core", least=1)
    seed: int = option(0, "of the random weights and clip", least=0)
    out: str = option("outputs", "folder; the records go to peers/ below it")


COMMAND = Command(
    "python -m benchmarks.peers",
    __doc__.partition("\n\n")[2],
    Options,
    (
        ("", "both at full size; some minutes on a CPU of two cores"),
        ("schemes=[divided] frames=2 size=32 depth=1 pairs=2", "seconds: does it work?"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 where outputs disagree, 2 for a wrong command. A peer that is not there is skipped."""
    return run(COMMAND, _main, argv)


def _main(options: Options) -> int:
    import torch

    from attention_zoo import kernels
    from harness import provenance

    if options.size % 32:
        raise UsageError(f"size={options.size} is not a multiple of 32, which both models need")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device={options.device}: torch {torch.__version__} sees no CUDA device")
    try:
        kernels.check_name(options.kernel)
    except KeyError as error:
        raise UsageError(error.args[0]) from error
    threads = options.threads or provenance.default_threads()
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    status = 0
    for name in options.schemes:
        try:
            peer, theirs, ours = PEERS[name](options)
        except Absent as error:
            print(f"{name}: skipped: {error}")
            continue
        record = compare(name, peer, theirs, ours, options, threads)
        print(sentence(record))
        print(f"  {write_record(record, Path(options.out) / 'peers')}")
        status |= record.measurements["difference"].value > TOLERANCE[options.dtype]
    return int(status)


def divided(options: Options) -> tuple[str, nn.Module, nn.Module]:
    """transformers' TimeSformer-Base and ours on its weights, each with the same classifier. Raises: Absent."""
    import torch
    from torch import nn

    from benchmarks.timesformer import TimeSformer, translated

    try:
        import transformers
        from transformers import TimesformerConfig, TimesformerModel
    except (ImportError, RuntimeError, OSError) as error:
        raise Absent(f"transformers cannot be imported ({_first_line(error)}); pip install transformers") from error
    frames, depth = options.frames or 8, options.depth or 12
    torch.manual_seed(options.seed)
    config = TimesformerConfig(image_size=options.size, num_frames=frames, num_hidden_layers=depth)

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.classifier = TimesformerModel(config), nn.Linear(config.hidden_size, CLASSES)

        def forward(self, clip):
            tokens = self.features(clip.transpose(1, 2)).last_hidden_state
            return self.classifier(tokens[:, 0])

    theirs = Theirs()
    _draw(theirs)
    features = TimeSformer(frames, options.size, depth=depth, kernel=options.kernel)
    features.load_state_dict(translated(theirs.features.state_dict()))
    classifier = nn.Linear(config.hidden_size, CLASSES)
    classifier.load_state_dict(theirs.classifier.state_dict())
    return f"transformers {transformers.__version__} TimesformerModel", theirs, nn.Sequential(features, classifier)


def shifted_window(options: Options) -> tuple[str, nn.Module, nn.Module]:
    """torchvision's swin3d_t and ours on its weights. Raises: Absent."""
    import torch

    from backbones import models

    try:
        import torchvision
        from torchvision.models.video.swin_transformer import SwinTransformer3d
    except (ImportError, RuntimeError, OSError) as error:
        needs = "torchvision needs the full torch build that it was made for"
        raise Absent(f"torchvision cannot be imported ({_first_line(error)}); {needs}") from error
    depths = [min(depth, options.depth or depth) for depth in (2, 2, 6, 2)]
    torch.manual_seed(options.seed)
    theirs = SwinTransformer3d(
        patch_size=[2, 4, 4], embed_dim=96, depths=depths, num_heads=[3, 6, 12, 24], window_size=[8, 7, 7],
        stochastic_depth_prob=0.0, num_classes=CLASSES,
    )  # fmt: skip
    _draw(theirs)
    clip = [options.frames or 32, options.size, options.size]
    changes = {"clip": clip, "depths": depths, "drop_path": 0.0, "dropout": 0.0}
    ours = models.create("video_swin_tiny", CLASSES, kernel=options.kernel, changes=changes)
    ours.load_state_dict(translated(theirs.state_dict()))
    return f"torchvision {torchvision.__version__} swin3d_t", theirs, ours


PEERS: dict[str, Callable[[Options], tuple[str, nn.Module, nn.Module]]] = {
    "divided": divided,
    "shifted_window": shifted_window,
}
FRAMES = {"divided": 8, "shifted_window": 32}


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a SwinTransformer3d under our names. Raises: KeyError for a name that is not known."""
    ours = {}
    for name, tensor in state.items():
        if name.endswith(".relative_position_index"):  # follows from the window
            continue
        new = next((re.sub(pattern, to, name) for pattern, to in RENAMES if re.search(pattern, name)), None)
        if new is None:
            raise KeyError(f"no weight of a SwinTransformer3d is known as {name!r}")
        ours[new] = tensor
    return ours


def compare(name: str, peer: str, theirs: nn.Module, ours: nn.Module, options: Options, threads: int) -> Record:
    """Check that the outputs agree, then time both in turn. Where they disagree nothing is timed."""
    import torch

    from harness import provenance

    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    frames = options.frames or FRAMES[name]
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch_size, 3, frames, options.size, options.size)
    clip = torch.randn(shape, generator=generator).to(device, dtype)
    sides = {"theirs": theirs.to(device, dtype).eval(), "ours": ours.to(device, dtype).eval()}
    with torch.inference_mode():
        logits = {side: model(clip).double() for side, model in sides.items()}
    difference = (logits["theirs"] - logits["ours"]).abs().max().item()
    measured = [
        Measurement(
            "difference", "1", "lower", (difference,), details={"largest_logit": logits["theirs"].abs().max().item()}
        )
    ]
    for mode in options.modes if difference <= TOLERANCE[options.dtype] else ():
        times = _times(mode, sides, clip, options)
        measured += [Measurement(f"{mode}_latency_{side}", "ms", "lower", samples) for side, samples in times.items()]
        measured.append(ratios(f"{mode}_speedup", times["theirs"], times["ours"]))
    kept = ("size", "depth", "batch_size", "device", "dtype", "kernel", "seed")
    described = {name: getattr(options, name) for name in kept}
    described |= {"scheme": name, "peer": peer, "frames": frames, "threads": threads}
    source = {**provenance.collect(), **provenance.of_torch(options.device)}
    return Record(case_id(name, described), "peers", name, described, {one.name: one for one in measured}, source)


def _times(mode: str, sides: dict[str, nn.Module], clip: Tensor, options: Options) -> dict[str, list[float]]:
    """Milliseconds of each side."""
    import torch

    from harness.training_step import TrainingStep

    wait = (lambda: torch.cuda.synchronize(clip.device)) if clip.device.type == "cuda" else (lambda: None)
    if mode == TRAINING:
        generator = torch.Generator().manual_seed(options.seed)
        targets = torch.randint(CLASSES, (options.batch_size,), generator=generator).to(clip.device)
        return in_turn({side: TrainingStep(model, clip, targets) for side, model in sides.items()}, options.pairs, wait)
    for model in sides.values():
        model.eval()
    with torch.inference_mode():
        runs = {side: lambda model=model: model(clip) for side, model in sides.items()}
        return in_turn(runs, options.pairs, wait)


def sentence(record: Record) -> str:
    """The result in some lines."""
    case, measured = record.case, record.measurements
    clip = f"{case['frames']}x{case['size']}x{case['size']}, batch {case['batch_size']}, {case['dtype']}"
    lines = [f"{case['scheme']} against {case['peer']}, {clip}, {case['device']}, {case['threads']} threads:"]
    difference = measured["difference"]
    said = f"outputs differ by at most {difference.value:.1e}, the largest is {difference.details['largest_logit']:.1e}"
    tolerance = TOLERANCE[case["dtype"]]
    lines.append(said if difference.value <= tolerance else f"{said}: above {tolerance:.0e}, so nothing is timed")
    for mode in (FORWARD, TRAINING):
        ratio = measured.get(f"{mode}_speedup")
        if ratio is not None:
            low, high = ratio.details["interval"]
            slow, fast = (measured[f"{mode}_latency_{side}"].median for side in ("theirs", "ours"))
            spread = f"{ratio.details['coverage']:.1%} interval {low:.2f} to {high:.2f}, {len(ratio.samples)} pairs"
            lines.append(
                f"{mode}: ours is {ratio.median:.2f} times as fast ({spread}; medians {slow:.0f} and {fast:.0f} ms)"
            )
    return "\n  ".join(lines)


def _draw(model: nn.Module) -> None:
    """Weights that are all zero are drawn: zeros would hide a wrong mapping."""
    from harness.build import fill_zeros

    fill_zeros(model)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    sys.exit(main())
