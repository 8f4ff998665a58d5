"""Does every kernel compute what it should on this machine: `python -m harness.sanity device=cuda`.

Every scheme on every kernel and number format, output and gradients, against the same weights in float64 on the
reference kernel; and attention alone on the token counts of the published models, masked, which are the ones where
fused kernels have been wrong. One record for each case, a table beside them. What is there for this commit is not done
again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.deadline import Deadline
from harness.spec.case import DTYPES
from harness.spec.options import Command, option, run
from harness.spec.reader import UsageError
from records import provenance
from records.record import Quantity, Record, RecordError, case_id, read_record, write_record, write_text

if TYPE_CHECKING:
    from torch import Tensor

FOLDER, REPORT = "sanity", "report.md"
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
"""Of the relative error: the Euclidean norm of the difference over that of the float64 result."""
DIM, HEADS, GRID = 64, 2, (4, 6, 8)  # the grid that the example of every scheme fits; 32 channels a head, as published
COMPILED = ("flex",)  # kernels that compile for each shape come last: a deadline must not cost the others
# Batch, heads, queries, keys, channels, and whether a bias is learned: a mask alone lets in kernels that cannot train a
# bias, as cuDNN's. 3136 = 16x14x14 is 64 modulo 128, where the masked backward pass of cuDNN gives NaN.
LENGTHS = {
    "attention 3136x392": (1, 4, 3136, 392, 32, True),
    "attention 3136x3136": (1, 2, 3136, 3136, 32, True),
    "attention 3136x392, mask": (1, 4, 3136, 392, 32, False),
    "attention 392x392, mask": (8, 4, 392, 392, 32, False),
}
QUICK_LENGTHS = {"attention 64x192": (1, 2, 64, 192, 32, True), "attention 64x192, mask": (1, 2, 64, 192, 32, False)}
ERRORS = {"forward_error": "output", "backward_error": "gradients"}


@dataclass
class Options:
    device: str = option("cpu", "where to compute, as cpu or cuda:0")
    out: str = option("outputs", f"folder; records and table go to {FOLDER}/ below it")
    seconds: float = option(600.0, "begin no case after so many", least=0)
    quick: bool = option(False, "one number format, without the published token counts")
    force: bool = option(False, "compute again what is there")


COMMAND = Command(
    "python -m harness.sanity",
    __doc__.partition("\n\n")[2],
    Options,
    (("device=cuda", "every kernel that a GPU may run"), ("quick=true", "half a minute on a CPU")),
)


@dataclass(frozen=True)
class Check:
    """One computation: `subject` is a scheme, or an entry of LENGTHS."""

    subject: str
    kernel: str
    dtype: str
    device: str

    @property
    def row(self) -> str:
        return f"{self.subject} · {self.kernel} · {self.dtype}"

    @property
    def case_id(self) -> str:
        return case_id(self.row, asdict(self))


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 where a kernel is wrong, 2 for a wrong command."""
    return run(COMMAND, _main, argv)


def _main(options: Options) -> int:
    reason = _missing(options.device)
    if reason:
        raise UsageError(reason)
    folder = Path(options.out) / FOLDER
    found, deadline = [], Deadline.after(options.seconds)
    wanted = checks(options.device, options.quick)
    for number, check in enumerate(wanted, start=1):
        record = None if options.force else _there(folder, check)
        if record is None and deadline.passed:
            deadline.left_out.append(check.row)
            continue
        if record is None:
            record = measured(check)
            write_record(record, folder)
            print(f"[{number}/{len(wanted)}] {check.row}: {_text(record)}", flush=True)
        found.append(record)
    print(write_text(report(found, deadline.left_out), folder / REPORT))
    wrong = [record for record in found if not right(record)]
    for record in wrong:
        print(f"wrong: {record.row}: {_text(record)}", file=sys.stderr)
    if deadline.left_out:
        print(f"{len(deadline.left_out)} of {len(wanted)} left out, the time is over; the next run goes on there")
    return 1 if wrong else 0


def checks(device: str, quick: bool = False) -> list[Check]:
    """All cases in the order in which they run."""
    import attention_zoo
    from attention_zoo import kernels

    subjects = [*(QUICK_LENGTHS if quick else LENGTHS), *attention_zoo.schemes.names()]
    names = sorted(kernels.names(), key=lambda name: name in COMPILED)
    return [
        Check(subject, kernel, dtype, device)
        for kernel in names
        for dtype in (("float32",) if quick else DTYPES)
        for subject in subjects
    ]


def measured(check: Check) -> Record:
    """The errors of one case, or why there are none."""
    import torch

    from attention_zoo import kernels

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    device, dtype = torch.device(check.device), getattr(torch, check.dtype)
    reason = kernels.missing(check.kernel, device, dtype, False)
    no_gradients = reason or kernels.missing(check.kernel, device, dtype, True)
    details = {"tolerance": TOLERANCE[check.dtype], "machine": provenance.machine(check.device)}
    measurements = dict.fromkeys(ERRORS)
    try:
        if reason is None:
            errors = _errors(check, backward=no_gradients is None)
            measurements |= {
                name: _quantity(name).of([error], details)
                for name, error in zip(ERRORS, errors, strict=False)
                if error is not None
            }
    except Exception as error:  # a kernel that fails is a row that says so
        reason = no_gradients = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        details |= {"failed": True}
    for name in ERRORS:
        if measurements[name] is None:
            why = no_gradients if name == "backward_error" else reason
            failed = details if why is not None else {**details, "failed": True}
            why = why or "the result is not finite"
            measurements[name] = _quantity(name).absent(why, details=failed)
    source = {**provenance.collect(), **provenance.of_torch(check.device), "device": check.device}
    return Record(check.case_id, FOLDER, check.row, asdict(check), measurements, source)


def _quantity(name: str) -> Quantity:
    return Quantity(name, "counted", name.replace("_", " "), "1", "lower")


def _errors(check: Check, backward: bool) -> Iterator[float | None]:
    """The relative errors of the output and, if `backward`, of all gradients as one vector; None where not finite.

    The output is taken without gradients and, if `backward`, with them too: PyTorch may choose another implementation.
    """
    import torch

    device, dtype = torch.device(check.device), getattr(torch, check.dtype)
    make = _lengths if check.subject in LENGTHS | QUICK_LENGTHS else _scheme
    compute, inputs = make(check)
    inputs = [x.to(device, dtype) for x in inputs]  # rounded once: both sides get the same numbers

    def results(kernel: str, dtype: torch.dtype) -> list[Tensor]:
        given = [x.detach().to(dtype).requires_grad_(backward) for x in inputs[:-1]]
        with torch.no_grad():
            flat = [compute(kernel, given).double().flatten()]
        if backward:
            y = compute(kernel, given)
            flat = [torch.cat([*flat, y.detach().double().flatten()])]
            gradients = torch.autograd.grad(y, given, inputs[-1].to(dtype))
            flat.append(torch.cat([gradient.double().flatten() for gradient in gradients]))
        return flat

    for got, wanted in zip(results(check.kernel, dtype), results("reference", torch.float64), strict=True):
        yield ((got - wanted).norm() / wanted.norm()).item() if bool(got.isfinite().all()) else None


def _scheme(check: Check) -> tuple[Callable[[str, list[Tensor]], Tensor], list[Tensor]]:
    """A scheme as a function of its parameters and its tokens; behind these, a gradient for its output."""
    import torch

    import attention_zoo
    from harness.cost.build import fill_zeros

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = attention_zoo.schemes.get(check.subject).example
        module = attention_zoo.build(check.subject, DIM, HEADS, GRID, **options).eval()
        fill_zeros(module)
        x, upstream = torch.randn(2, *GRID, DIM), torch.randn(2, *GRID, DIM)
    names = [name for name, _ in module.named_parameters()]
    buffers = dict(module.named_buffers())

    def compute(kernel: str, given: list[Tensor]) -> Tensor:
        *weights, tokens = given
        attention_zoo.use_kernel(module, kernel)
        moved = {
            name: b.to(tokens.device, tokens.dtype) if b.is_floating_point() else b.to(tokens.device)
            for name, b in buffers.items()
        }
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)) | moved, (tokens,))

    return compute, [*(p.detach() for p in module.parameters()), x, upstream]


def _lengths(check: Check) -> tuple[Callable[[str, list[Tensor]], Tensor], list[Tensor]]:
    """Attention alone, with a mask that leaves each query at least one key, and with a bias."""
    import torch

    from attention_zoo.kernels import attend

    b, m, n, s, c, learned = (LENGTHS | QUICK_LENGTHS)[check.subject]
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    forbidden = torch.rand(1, 1, n, s, generator=generator) < 0.4
    forbidden[..., : s // 2] = True  # whole blocks of leading keys, which online softmax must survive
    forbidden[..., s // 2] = False
    mask = torch.zeros(1, 1, n, s).masked_fill(forbidden, -torch.inf)
    inputs = [noise(b, m, n, c), noise(b, m, s, c), noise(b, m, s, c)]
    bias = [noise(1, m, n, s)] if learned else []

    def compute(kernel: str, given: list[Tensor]) -> Tensor:
        q, k, v, *bias = given
        return attend(q, k, v, sum(bias, mask.to(q)), kernel=kernel)

    return compute, [*inputs, *bias, noise(b, m, n, c)]


def right(record: Record) -> bool:
    """Whether every error that there is lies within the tolerance. What cannot run here is not wrong."""
    return all(
        not one.details.get("failed") if one.missing else one.value <= one.details["tolerance"]
        for one in record.measurements.values()
    )


def report(records: list[Record], left_out: list[str]) -> str:
    """The table: a row for each subject and kernel, a column for each number format."""
    machines = sorted({record.measurements["forward_error"].details["machine"] for record in records})
    lines = [f"# Every kernel against the reference in float64: {' and '.join(machines)}", ""]
    wrong = [record for record in records if not right(record)]
    lines += [f"{len(records)} cases, {len(wrong)} wrong." + (f" {len(left_out)} left out." if left_out else ""), ""]
    lines += [f"- wrong: {record.row}: {_text(record)}" for record in wrong]
    dtypes = [name for name in DTYPES if any(record.case["dtype"] == name for record in records)]
    by_row: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        by_row.setdefault((record.case["subject"], record.case["kernel"]), {})[record.case["dtype"]] = record
    reasons: list[str] = []
    lines += ["| attention | kernel | " + " | ".join(dtypes) + " |", "| --- | --- |" + " --- |" * len(dtypes)]
    for (subject, kernel), of_row in sorted(by_row.items()):
        cells = [_cell(of_row[name], reasons) if name in of_row else "left out" for name in dtypes]
        lines.append(f"| {subject} | {kernel} | " + " | ".join(cells) + " |")
    lines += ["", "Relative error of the output / of all gradients as one vector."]
    lines += [f"Tolerances: {', '.join(f'{name} {TOLERANCE[name]:g}' for name in dtypes)}.", ""]
    lines += [f"[{number}] {reason}  " for number, reason in enumerate(reasons, start=1)]
    return "\n".join(lines).rstrip() + "\n"


def _cell(record: Record, reasons: list[str]) -> str:
    shown = []
    for one in record.measurements.values():
        if one.missing and one.missing not in reasons:
            reasons.append(one.missing)
        shown.append(f"— [{reasons.index(one.missing) + 1}]" if one.missing else f"{one.value:.0e}")
    text = shown[0] if len(set(shown)) == 1 and "—" in shown[0] else " / ".join(shown)
    return text if right(record) else f"**{text}**"


def _text(record: Record) -> str:
    said: dict[str, Any] = {
        ERRORS[name]: one.missing or f"{one.value:.1e}" for name, one in record.measurements.items()
    }
    same = len(set(said.values())) == 1
    return next(iter(said.values())) if same else ", ".join(f"{name} {text}" for name, text in said.items())


def _there(folder: Path, check: Check) -> Record | None:
    """The record of a case, if one of this code on this machine is there that did not fail.

    Of a checkout with local changes nothing says what the code was.
    """
    path = folder / f"{check.case_id}.json"
    try:
        record = read_record(path) if path.exists() else None
    except RecordError:
        return None
    code = provenance.commit()
    if record is None or code["commit"] == provenance.UNKNOWN or record.provenance.get("commit") != code["commit"]:
        return None
    if code["dirty"] or record.provenance.get("dirty"):
        return None
    details = [one.details for one in record.measurements.values()]
    same = details[0]["machine"] == provenance.machine(check.device)
    return record if same and not any(one.get("failed") for one in details) else None


def _missing(device: str) -> str | None:
    from harness.cost.build import unavailable

    if device.partition(":")[0] not in ("cpu", "cuda"):
        return f"unknown device {device!r}; allowed: cpu, cuda, cuda:N"
    return unavailable(device)


if __name__ == "__main__":
    sys.exit(main())
