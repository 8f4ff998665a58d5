"""Our speed against other implementations of a scheme: `python -m benchmarks.peers`.

Both sides hold the same weights and see the same clip in one process; that their outputs agree is checked before
anything is timed. They then run in turn, so that a slow minute of the machine hits both, forward and in training steps;
the figure is the median of the ratios of the pairs with its interval. The memory of a training step is measured for
each side in a process of its own.

On a CPU the C library keeps freed blocks of up to 32 MiB, for both, as in the harness's measuring process: larger
tensors are mapped afresh, and a program that makes many of them can spend half of its time on clearing their pages.
That is how PyTorch runs by default, and part of what ours gains; `allocator=keep` keeps all that is freed, and shows
what is left.

- divided: TimesformerModel of transformers, which installs beside any torch: `pip install transformers`. A pyramid's
  block cannot hold its weights, so our attention stands in TimeSformer's own block (benchmarks/timesformer.py).
- shifted_window: swin3d_t of torchvision, whose compiled part loads with the full torch build that it was made for
  only; elsewhere it is skipped. A torchvision that does not load keeps transformers from loading too: remove it then.
- local_global: DualFormer in the layout of its released code with plain softmax attention, written here from its
  description (benchmarks/dualformer.py): the released repository needs an mmaction that no current torch runs. Below
  224 pixels windows and pooled copies shrink with the size. `kernel=` chooses ours, never theirs.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from harness.spec.case import DTYPES
from harness.spec.options import Command, option, run
from harness.spec.reader import UsageError
from harness.speedup import TOLERANCE, in_turn, ratios, warm_up_seconds
from records.record import Measurement, Quantity, Record, RecordError, case_id, read_record, write_record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attention_zoo import Grid
    from benchmarks.dualformer import DualFormer

ALLOCATORS = "default", "keep"
FOLDER = "peers"
SAME = ("commit", "cpu", "cpu_generation", "gpu", "packages")  # of the provenance of what may stand in one record
MODES = FORWARD, TRAINING, MEMORY = "forward", "training", "memory"
FRAMES = {"divided": 8, "shifted_window": 32, "local_global": 32}
SIDES = ("theirs", "ours")
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
    schemes: list[str] = option(list(FRAMES), "what to compare", choices=tuple(FRAMES))
    modes: list[str] = option(list(MODES), "what to measure; memory is that of a training step", choices=MODES)
    variant: str = option("tiny", "of local_global", choices=("tiny", "small", "base"))
    frames: int | None = option(None, "of the clip; none: 8 for divided, 32 for the others", least=1)
    size: int = option(224, "height and width in pixels; a multiple of 32", least=32)
    depth: int | None = option(None, "blocks, of each stage where there are stages; none: as published", least=1)
    batch_size: int = option(1, "clips at once", least=1)
    device: str = option("cpu", "cpu or cuda")
    dtype: str = option("float32", "number format of weights and clip", choices=DTYPES)
    kernel: str = option("auto", "what computes our attention")
    compile: bool = option(False, "ours compiled and frozen, against theirs as it is; modes=[forward] only")
    allocator: str = option(
        "default", "of memory on a CPU: the C library's, or one that keeps all that is freed", choices=ALLOCATORS
    )
    pairs: int = option(10, "runs of each side", least=1)
    threads: int | None = option(None, "CPU threads; none: one per physical core", least=1)
    seed: int = option(0, "of the random weights and clip", least=0)
    out: str = option("outputs", "folder; the records go to peers/ below it")


COMMAND = Command(
    "python -m benchmarks.peers",
    __doc__.partition("\n\n")[2],
    Options,
    (
        ("", "all at full size; many minutes on a CPU of two cores"),
        ("schemes=[local_global] modes=[forward] dtype=bfloat16", "one scheme, one mode, another number format"),
        ("schemes=[local_global] modes=[forward] compile=true", "ours compiled and frozen; compiling takes minutes"),
        ("schemes=[shifted_window] allocator=keep", "without what mapping large tensors afresh costs"),
        ("schemes=[divided] frames=2 size=32 depth=1 pairs=2", "seconds: does it work?"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 where outputs disagree or memory could not be measured, 2 for a wrong command.

    A peer that is not there is skipped.
    """
    return run(COMMAND, _main, argv)


def _main(options: Options) -> int:
    import torch

    from attention_zoo import kernels
    from records import provenance

    if options.size % 32:
        raise UsageError(f"size={options.size} is not a multiple of 32, which every model needs")
    if options.compile and options.modes != [FORWARD]:
        raise UsageError("compile=true is frozen inference, which has no training step; use modes=[forward]")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device={options.device}: torch {torch.__version__} sees no CUDA device")
    try:
        kernels.check_name(options.kernel)
    except KeyError as error:
        raise UsageError(error.args[0]) from error
    if "local_global" in options.schemes:
        with torch.device("meta"):
            released(options)  # refuses a clip that it cannot take before anything is measured
    threads = options.threads or provenance.default_threads()
    _allocate(options)
    _set_up(threads, options.device)
    status = 0
    for name in options.schemes:
        try:
            peer, theirs, ours = PEERS[name](options)
        except Absent as error:
            print(f"{name}: skipped: {error}")
            continue
        record = compare(name, peer, theirs, ours, options, threads)
        print(sentence(record))
        print(f"  {Path(options.out, FOLDER, record.case_id)}.json")
        status |= _apart(record.measurements["difference"], options.dtype) is not None
        status |= any(one.missing is not None for one in record.measurements.values())
    return int(status)


def _allocate(options: Options) -> None:
    from harness.cost import memory

    memory.keep_all_freed() if options.allocator == "keep" else memory.keep_freed()


def _set_up(threads: int, device: str) -> None:
    import torch

    torch.set_num_threads(threads)
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32


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

    import backbones

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
    ours = backbones.create("video_swin_tiny", CLASSES, kernel=options.kernel, changes=changes)
    ours.load_state_dict(translated(theirs.state_dict()))
    return f"torchvision {torchvision.__version__} swin3d_t", theirs, ours


def local_global(options: Options) -> tuple[str, nn.Module, nn.Module]:
    """DualFormer in the layout of its released code, and ours on its weights. Raises: UsageError."""
    import torch

    import backbones
    from backbones.checkpoint import translate
    from backbones.pyramid import COARSE

    torch.manual_seed(options.seed)
    theirs = released(options)
    _draw(theirs)
    window = list(_windows(options))
    changes = {
        "clip": [options.frames or FRAMES["local_global"], options.size, options.size],
        "depths": [len(blocks) for blocks in theirs.blocks],
        "drop_path": 0.0,
        "dropout": 0.0,
        "attention.L.window": window,
        "attention.G1.scales": [window],
        "attention.G2.scales": [window, list(COARSE)],
    }
    ours = backbones.create(f"dualformer_{options.variant}", CLASSES, kernel=options.kernel, changes=changes)
    ours.load_state_dict(translate(theirs.state_dict()).tensors)
    peer = "the layout of the released code with plain softmax, written here from its description"
    return f"DualFormer-{options.variant.title()}: {peer}", theirs, ours


def released(options: Options) -> DualFormer:
    """Raises: UsageError where the clip cannot be divided as the released code demands."""
    from attention_zoo import Grid
    from backbones.pyramid import DUALFORMER_SIZES
    from benchmarks.dualformer import DualFormer

    frames = options.frames or FRAMES["local_global"]
    sizes = {name: value for name, value in DUALFORMER_SIZES[options.variant].items() if name != "drop_path"}
    sizes["depths"] = [min(depth, options.depth or depth) for depth in sizes["depths"]]
    clip, window = Grid(frames, options.size, options.size), _windows(options)
    try:
        return DualFormer(clip, CLASSES, **sizes, window=window, fine=window)
    except ValueError as error:
        raise UsageError(
            f"frames={frames} size={options.size}: the released layout of local_global pads nothing, and {error}; "
            "allowed: frames 2, 4, 6, 8 or a multiple of 16, size a multiple of 32 from 64 to 224 or one of 224"
        ) from error


def _windows(options: Options) -> Grid:
    """Of local attention and of the fine pooled copy: 8x7x7, or a map's share of a smaller clip."""
    from attention_zoo import Grid
    from backbones.pyramid import WINDOW

    return Grid(*WINDOW).clipped(Grid(WINDOW[0], options.size // 32, options.size // 32))


PEERS: dict[str, Callable[[Options], tuple[str, nn.Module, nn.Module]]] = {
    "divided": divided,
    "shifted_window": shifted_window,
    "local_global": local_global,
}


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
    """Check that the outputs agree, then time both in turn. Where they disagree nothing is timed.

    The record is written after each mode, and keeps what the same code measured on this machine of other modes. A mode
    that fails is there with the reason.
    """
    import torch

    from harness.cost import memory

    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    clip = _clip(name, options)
    sides = {"theirs": theirs.to(device, dtype).eval(), "ours": ours.to(device, dtype).eval()}
    if options.compile:
        from harness.cost.workload import frozen

        sides["ours"] = frozen(sides["ours"], clip)
    with torch.inference_mode():
        logits = {side: model(clip).double() for side, model in sides.items()}
    kept = ("size", "depth", "batch_size", "device", "dtype", "kernel", "seed")
    described = {name: getattr(options, name) for name in kept}
    described |= {"scheme": name, "peer": peer, "frames": clip.shape[2], "threads": threads}
    if options.compile:
        described["compile"] = True
    if options.allocator != "default":
        described["allocator"] = options.allocator
    if name == "local_global":
        described["variant"] = options.variant
    record = _begun(name, described, options)
    agreement = _difference(logits)
    if _apart(agreement, options.dtype) is not None:
        record.measurements.clear()
    record.measurements[agreement.name] = agreement
    folder = Path(options.out, FOLDER)
    for mode in options.modes if _apart(agreement, options.dtype) is None else ():
        try:
            measured = _measured(mode, name, sides, clip, options, threads)
        except Exception as error:  # of any kind: the other modes and schemes are not lost with it
            reason = "out of memory" if memory.ran_out(error) else f"{type(error).__name__}: {_first_line(error)[:200]}"
            measured = [Quantity(f"{mode}_speedup", "timed", f"{mode} speedup", "times", "higher").absent(reason)]
        record.measurements.update({one.name: one for one in measured})
        write_record(record, folder)
    write_record(record, folder)
    return record


def _begun(name: str, described: dict[str, object], options: Options) -> Record:
    """The record of a comparison, with what the same code has measured of it on this machine."""
    from records import provenance

    source = {**provenance.collect(), **provenance.of_torch(options.device)}
    record = Record(case_id(name, described), "peers", name, described, {}, source)
    try:
        old = read_record(Path(options.out, FOLDER, f"{record.case_id}.json"))
    except (OSError, RecordError):
        return record
    known = source["commit"] != provenance.UNKNOWN and not (source["dirty"] or old.provenance.get("dirty"))
    if known and all(old.provenance.get(key) == source.get(key) for key in SAME):
        record.measurements.update(old.measurements)
    return record


def _difference(logits: dict[str, Tensor]) -> Measurement:
    """By how much the outputs differ at most."""
    quantity = Quantity("difference", "counted", "difference", "1", "lower")
    largest = {side: values.abs().max().item() for side, values in logits.items()}
    if wrong := [side for side, value in largest.items() if not math.isfinite(value)]:
        return quantity.absent(f"not every output is finite: {', '.join(wrong)}")
    difference = (logits["theirs"] - logits["ours"]).abs().max().item()
    return quantity.of([difference], {"largest_logit": largest["theirs"]})


def _apart(difference: Measurement, dtype: str) -> str | None:
    """Why nothing is timed: the outputs do not agree."""
    if difference.missing:
        return difference.missing
    tolerance = TOLERANCE[dtype]
    return f"above {tolerance:.0e}" if difference.value > tolerance else None


def _measured(
    mode: str, name: str, sides: dict[str, nn.Module], clip: Tensor, options: Options, threads: int
) -> list[Measurement]:
    if mode == MEMORY:
        return memory_of_training(name, options, threads)
    times = _times(mode, sides, clip, options)
    measured = [
        Quantity(f"{mode}_latency_{side}", "timed", f"{mode} latency, {side}", "ms", "lower").of(samples)
        for side, samples in times.items()
    ]
    return [*measured, ratios(f"{mode}_speedup", times["theirs"], times["ours"])]


def _clip(name: str, options: Options) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch_size, 3, options.frames or FRAMES[name], options.size, options.size)
    return torch.randn(shape, generator=generator).to(options.device, getattr(torch, options.dtype))


def _targets(options: Options) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(options.seed)
    return torch.randint(CLASSES, (options.batch_size,), generator=generator).to(options.device)


def _times(mode: str, sides: dict[str, nn.Module], clip: Tensor, options: Options) -> dict[str, list[float]]:
    """Milliseconds of each side."""
    import torch

    from harness.cost.training_step import TrainingStep

    wait = (lambda: torch.cuda.synchronize(clip.device)) if clip.device.type == "cuda" else (lambda: None)
    timing = options.pairs, wait, warm_up_seconds(clip.device)
    if mode == TRAINING:
        targets = _targets(options)
        return in_turn({side: TrainingStep(model, clip, targets) for side, model in sides.items()}, *timing)
    for model in sides.values():
        model.eval()
    with torch.inference_mode():
        runs = {side: lambda model=model: model(clip) for side, model in sides.items()}
        return in_turn(runs, *timing)


def memory_of_training(name: str, options: Options, threads: int) -> list[Measurement]:
    """Bytes of each side at the peak of a training step, each in a fresh process, and how many times ours theirs are.

    On CUDA the peak of torch's allocator, on the CPU the growth of the process's resident set: as the harness's
    `training_memory`.
    """
    import torch

    from harness.cost import memory

    memory.release()  # what timing has left
    if options.device.startswith("cuda"):
        torch.cuda.empty_cache()
    measured = []
    for side in SIDES:
        quantity = Quantity(f"{TRAINING}_memory_{side}", "sized", f"training memory, {side}", "bytes", "lower")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            try:
                peak, how = process.submit(_peak, name, side, options, threads).result()
                outcome = quantity.of([peak], {"how": how})
            except BrokenProcessPool:
                outcome = quantity.absent(f"{side}: the measuring process was ended, most likely as memory ran out")
            except Exception as error:  # of any kind, as it comes from the other process: told, not traced
                outcome = quantity.absent(f"{side}: {'out of memory' if memory.ran_out(error) else _first_line(error)}")
        measured.append(outcome)
    theirs, ours = measured
    missing = theirs.missing or ours.missing
    ratio = Quantity(f"{TRAINING}_memory_ratio", "sized", "training memory ratio", "times", "higher")
    return [*measured, ratio.absent(missing) if missing else ratio.of([theirs.value / ours.value])]


def _peak(name: str, side: str, options: Options, threads: int) -> tuple[int, str]:
    """In a process of its own: the peak of a training step that is not the first, and how it was seen."""
    import torch
    from torch import nn

    from harness.cost import memory
    from harness.cost.training_step import TrainingStep, size

    _set_up(threads, options.device)
    on_cuda, dtype = options.device.startswith("cuda"), getattr(torch, options.dtype)
    _allocate(options)
    with contextlib.nullcontext() if on_cuda else memory.freed_at_once():
        if not on_cuda:
            memory.limit()
        model = PEERS[name](options)[1 + SIDES.index(side)].to(options.device, dtype)  # the other one is freed here
        clip, targets = _clip(name, options), _targets(options)
        miniature = nn.Sequential(nn.Conv3d(3, 8, 1), nn.BatchNorm3d(8), nn.GELU(), nn.Flatten(), nn.LayerNorm(128))
        miniature.append(nn.Linear(128, CLASSES)).to(options.device, dtype)
        TrainingStep(miniature, clip[:, :, :1, :4, :4], targets)()  # libraries and threads are there from now on
        del miniature
        memory.release()
        before = memory.resident() - size([*model.parameters(), *model.buffers()])
        step = TrainingStep(model, clip, targets)
        step.first()
        if on_cuda:
            step()  # libraries allocate their workspaces in the first steps
            torch.cuda.reset_peak_memory_stats(clip.device)
            step()
            return torch.cuda.max_memory_allocated(clip.device), "peak of torch's allocator"
        memory.release()
        with memory.Peak() as peak:
            step()
    return peak.bytes - before, peak.how


def sentence(record: Record) -> str:
    """The result in some lines."""
    case, measured = record.case, record.measurements
    clip = f"{case['frames']}x{case['size']}x{case['size']}, batch {case['batch_size']}, {case['dtype']}"
    clip += ", ours compiled and frozen" if case.get("compile") else ""
    lines = [f"{case['scheme']} against {case['peer']}, {clip}, {case['device']}, {case['threads']} threads:"]
    difference = measured["difference"]
    why = _apart(difference, case["dtype"])
    said = f"{why}, so nothing is timed"
    if not difference.missing:
        largest = difference.details["largest_logit"]
        agree = f"outputs differ by at most {difference.value:.1e}, the largest is {largest:.1e}"
        said = f"{agree}: {said}" if why else agree
    lines.append(said)
    for mode in (FORWARD, TRAINING):
        ratio = measured.get(f"{mode}_speedup")
        if ratio is not None and ratio.missing:
            lines.append(f"{mode}: not measured: {ratio.missing}")
        elif ratio is not None:
            low, high = ratio.details["interval"]
            slow, fast = (measured[f"{mode}_latency_{side}"].median for side in ("theirs", "ours"))
            spread = f"{ratio.details['coverage']:.1%} interval {low:.2f} to {high:.2f}, {len(ratio.samples)} pairs"
            lines.append(
                f"{mode}: ours is {ratio.median:.2f} times as fast ({spread}; medians {slow:.0f} and {fast:.0f} ms)"
            )
    ratio = measured.get(f"{TRAINING}_memory_ratio")
    if ratio is not None and ratio.missing:
        lines.append(f"memory of a training step: not measured: {ratio.missing}")
    elif ratio is not None:
        theirs, ours = (measured[f"{TRAINING}_memory_{side}"].value / 2**20 for side in SIDES)
        lines.append(
            f"memory of a training step: theirs is {ratio.value:.2f} times ours ({theirs:.0f} and {ours:.0f} MiB)"
        )
    return "\n  ".join(lines)


def _draw(model: nn.Module) -> None:
    """Weights that are all zero are drawn: zeros would hide a wrong mapping."""
    from harness.cost.build import fill_zeros

    fill_zeros(model)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    sys.exit(main())
