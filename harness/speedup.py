"""How much faster one attention kernel is than another: `python -m harness.speedup model=dualformer_tiny
kernels=[reference,sdpa]`.

Both run in one process on the same weights and the same clip, in turn, so that a slow minute of the machine hits both.
Each pair of runs gives one ratio; the figure is the median of the ratios with an order-statistic interval that assumes
nothing about their distribution.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_zoo.registry import nearest
from harness.spec.case import DTYPES, Case, Clip
from harness.spec.options import until_closed
from records.record import Measurement, Quantity, Record, case_id, write_record

if TYPE_CHECKING:
    import torch

COMMAND = "python -m harness.speedup"
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}  # of the logits, absolute


@dataclass
class Options:
    """What may stand on the command line as key=value."""

    model: str = "dualformer_tiny"
    kernels: str = "[reference,sdpa]"
    frames: int = 32
    size: int = 224
    clip: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 1
    pairs: int = 10
    threads: int = 0
    seed: int = 0
    out: str = "outputs"


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 when the two kernels disagree, 2 for a wrong command."""
    argv = sys.argv[1:] if argv is None else argv
    if any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {COMMAND} [option=value ...]\n\n{__doc__}\noptions and defaults")
        print("\n".join(f"  {name}={value}" for name, value in asdict(Options()).items()))
        return 0
    try:
        options = parse(argv)
        first, second, case = _prepare(options)
        record = compare(case, first, second, options.pairs, _clip(case, Path(options.out)))
        path = write_record(record, Path(options.out) / "speedup")
    except (ValueError, KeyError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"error: {text}\n`{COMMAND} --help` lists the options.", file=sys.stderr)
        return 2
    print(sentence(record))
    print(path)
    difference = record.measurements["logit_difference"].value
    if difference > TOLERANCE[case.dtype]:
        print(f"the kernels disagree: {difference:.1e} is above {TOLERANCE[case.dtype]:.0e}", file=sys.stderr)
        return 1
    return 0


def parse(argv: list[str]) -> Options:
    """Raises: ValueError naming the argument and what is allowed."""
    kinds = {f.name: f.type for f in fields(Options)}
    chosen = {}
    for argument in argv:
        key, equals, raw = argument.partition("=")
        if not equals or key not in kinds:
            raise ValueError(f"unknown option {argument!r}; {nearest(key.lstrip('-'), kinds)}, each as option=value")
        if kinds[key] == "int":
            if not raw.isdigit() or (int(raw) < 1 and key not in ("seed", "threads")):
                raise ValueError(f"{argument} is not a whole number from 1")
            chosen[key] = int(raw)
        else:
            chosen[key] = raw
    return Options(**chosen)


def _prepare(options: Options) -> tuple[str, str, Case]:
    import backbones
    from attention_zoo import kernels
    from harness.cost.build import unavailable
    from records import provenance

    pair = [name.strip() for name in options.kernels.strip("[]").split(",")]
    if len(pair) != 2 or pair[0] == pair[1]:
        raise ValueError(f"kernels={options.kernels}; give two, the slower first: kernels=[reference,sdpa]")
    if options.dtype not in DTYPES:
        raise ValueError(f"unknown dtype {options.dtype!r}; {nearest(options.dtype, DTYPES)}")
    if options.device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {options.device!r}; {nearest(options.device, ('cpu', 'cuda'))}")
    config = backbones.config(options.model)
    frames = 1 if config.clip.t == 1 else options.frames
    config = config.changed({"clip": [frames, options.size, options.size]})
    case = Case(
        row=f"{options.model} {pair[0]} {pair[1]}", model=options.model, config=config.to_dict(),
        clip=Clip(frames=frames, size=options.size, path=options.clip or None), batch_size=options.batch_size,
        device=options.device, dtype=options.dtype, seed=options.seed,
        threads=options.threads or provenance.default_threads(),
    )  # fmt: skip
    for name in pair:
        kernels.check_name(name)
        reason = unavailable(case.device, case.dtype, name)
        if reason:
            raise ValueError(reason)
    return pair[0], pair[1], case


def _clip(case: Case, out: Path):
    from harness import video

    clip = case.clip
    return video.decode(clip.path or video.sample_clip(out), clip.frames, clip.stride, clip.size)


def compare(case: Case, first: str, second: str, pairs: int, clip) -> Record:
    """Time two kernels in turn (first second, second first, ...) on one model. `clip` is a `video.Decoded`."""
    import torch

    from attention_zoo import use_kernel
    from harness.clips.transforms import normalise
    from harness.cost.build import build
    from records import provenance

    torch.set_num_threads(case.threads or 1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    device = torch.device(case.device)
    model = build(case)
    x = normalise(clip.frames).to(device, getattr(torch, case.dtype))
    x = x.expand(case.batch_size, *x.shape).contiguous()

    def run(kernel: str) -> torch.Tensor:
        use_kernel(model, kernel)
        return model(x)

    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    with torch.inference_mode():
        logits = {kernel: run(kernel) for kernel in (first, second)}
        runs = {kernel: lambda kernel=kernel: run(kernel) for kernel in (first, second)}
        times = in_turn(runs, pairs, wait, warm_up_seconds(device))
    difference = (logits[first].double() - logits[second].double()).abs().max().item()
    source = {
        **provenance.collect(), **provenance.of_torch(case.device),
        "clip": {"source": clip.source if case.clip.path else "sample", "sha256": clip.digest, "decoder": clip.decoder},
    }  # fmt: skip
    measured = [
        Quantity(f"latency_{first}", "timed", f"latency, {first}", "ms", "lower").of(times[first]),
        Quantity(f"latency_{second}", "timed", f"latency, {second}", "ms", "lower").of(times[second]),
        ratios("speedup", times[first], times[second]),
        Quantity("logit_difference", "counted", "logit difference", "1", "lower").of(
            [difference], {"largest_logit": logits[first].abs().max().item()}
        ),
    ]
    described = {**case.to_dict(), "kernel": [first, second]}
    return Record(
        case_id(case.row, described), "speedup", case.row, described, {one.name: one for one in measured}, source
    )


def in_turn(
    runs: dict[str, Callable[[], Any]], pairs: int, wait: Callable[[], None], warm_up: float = 0.0
) -> dict[str, list[float]]:
    """Milliseconds of two runs that take turns, every second pair reversed, after two of each that are not timed.

    They take turns untimed for `warm_up` seconds at least. `wait` returns when the device has done its work.
    """
    begun = time.perf_counter()

    def timed(name: str) -> float:
        start = time.perf_counter()
        runs[name]()
        wait()
        return (time.perf_counter() - start) * 1000

    times: dict[str, list[float]] = {name: [] for name in runs}
    for name in [*runs, *runs]:
        timed(name)
    while time.perf_counter() - begun < warm_up:
        for name in runs:
            timed(name)
    for index in range(pairs):
        for name in runs if index % 2 == 0 else reversed(runs):
            times[name].append(timed(name))
    return times


def warm_up_seconds(device: torch.device) -> float:
    """How long two runs take turns untimed at least: a GPU needs about so long to reach its clock rate."""
    return 1.0 if device.type == "cuda" else 0.0


def ratios(name: str, slow: list[float], fast: list[float]) -> Measurement:
    """How many times as fast, pair by pair, with the interval of the median."""
    values = [a / b for a, b in zip(slow, fast, strict=True)]
    low, high, coverage = interval(values)
    details = {"interval": [low, high], "coverage": coverage, "order": "in turn, every second pair reversed"}
    return Quantity(name, "timed", name.replace("_", " "), "times", "higher").of(values, details)


def interval(values: list[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The narrowest pair of order statistics that covers the median with at least `confidence`, and how surely it does.

    With few values even the smallest and largest cover it less surely; they are returned then, with what they reach.
    """
    ordered, n = sorted(values), len(values)

    def coverage(k: int) -> float:
        return 1 - 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n

    k = max((k for k in range((n + 1) // 2) if coverage(k) >= confidence), default=0)
    return ordered[k], ordered[n - 1 - k], max(0.0, coverage(k))


def sentence(record: Record) -> str:
    """The result in one line."""
    case, speedup = record.case, record.measurements["speedup"]
    first, second = case["kernel"]
    clip = "x".join(str(case["clip"][axis]) for axis in ("frames", "size", "size"))
    low, high = speedup.details["interval"]
    slow, fast = (record.measurements[f"latency_{kernel}"].median for kernel in (first, second))
    setting = f"{case['model']}, {clip}, batch {case['batch_size']}, {case['dtype']}, {case['device']}"
    ratio = f"{second} is {speedup.median:.2f} times as fast as {first}"
    spread = f"{speedup.details['coverage']:.1%} interval {low:.2f} to {high:.2f}, {len(speedup.samples)} pairs"
    difference = record.measurements["logit_difference"].value
    return (
        f"{setting}, {case['threads']} threads: {ratio} ({spread}; medians {slow:.0f} and {fast:.0f} ms); "
        f"logits differ by at most {difference:.1e}"
    )


if __name__ == "__main__":
    sys.exit(until_closed(main))
