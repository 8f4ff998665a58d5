"""The process in which one case is timed: a JSON file asks, a JSON file answers.

A process of its own, so that a case sees no memory, thread pool or cache of the case before it, and so that its death
is a row of the table and not the end of the run. The answer is rewritten after each metric; what is in it survives
whatever comes after.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.cost import isolation, memory, metrics
from harness.cost.measure import Effort
from harness.spec.case import Case
from records.record import write_json


def main(parent: int, arguments: list[str]) -> None:
    """`REQUEST ANSWER`: answer one request. `--forks`: load the libraries and answer each request in a fork."""
    if arguments != ["--forks"]:
        answer(*arguments, parent)
        return
    from attention_zoo import kernels, schemes
    from harness.cost import workload  # noqa: F401  (loaded here, so that no fork has to)

    for registry in (kernels, schemes, metrics):
        registry.names()
    isolation.serve_forks(answer)


def answer(request_file: str, answer_file: str, parent: int) -> None:
    """Measure what a request asks for, in this process."""
    _tie_to_parent(parent)
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    case, found = Case.from_dict(request["case"]), {}
    for name, measured in _measure(case, request):
        found[name] = [asdict(measurement) for measurement in measured]
        write_json(found, Path(answer_file))


def _measure(case: Case, request: dict[str, Any]):
    """Yields each metric's name and measurements."""
    import torch

    from harness.cost.build import unavailable
    from harness.cost.workload import Workload

    wanted = sorted((metrics.get(name) for name in request["metrics"]), key=lambda metric: metric.order)
    details = {"machine": request["machine"]}
    reason = unavailable(case)
    if reason is not None:
        for metric in wanted:
            yield metric.name, metric.missing(reason, retry=False, details=details)
        return
    if case.threads:
        torch.set_num_threads(case.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.benchmark = False
    if torch.device(case.device).index is not None:  # events are recorded where the current device works
        torch.cuda.set_device(case.device)
    memory.keep_freed()
    workload = Workload(case, request["clip"], Effort(**request["effort"]), request["machine"], request["time_limit"])
    free = memory.limit() if workload.device.type == "cpu" else None
    for metric in wanted:
        if reason is not None:  # what one metric lacked, memory or support, the next would lack too
            yield metric.name, metric.missing(reason, retry=False, details=details)
            continue
        try:
            yield metric.name, metric.run(workload)
        except Exception as error:
            why, retry = _reason(error, free)
            if retry:
                traceback.print_exc()
            else:
                reason = why
            yield metric.name, metric.missing(why, retry=retry, details=details)


def _reason(error: Exception, free: int | None) -> tuple[str, bool]:
    """Why there is no number, and whether another try could give one."""
    from attention_zoo.kernels import KernelUnavailable

    text = " ".join(str(error).split())
    if memory.ran_out(error):
        asked = text.partition("ried to allocate ")[2].split(".  ")[0].split(" Error")[0].split(". ")[0]
        if asked.endswith(" bytes"):
            asked = f"{int(asked.removesuffix(' bytes')) / 2**30:.1f} GiB"
        sizes = [f"one piece of {asked}"] if asked else []
        sizes += [f"{free / 2**30:.1f} GiB were free"] if free else []
        return "out of memory" + (f": {', '.join(sizes)}" if sizes else ""), False
    if isinstance(error, KernelUnavailable | NotImplementedError) or "not implemented for" in text:
        return f"not supported: {text[:200]}", False
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        on = " on flex, which compiles itself; run it with compile=false" if "flex_attention" in text else ""
        return f"torch.compile failed{on}: {text.partition(' Set TORCHDYNAMO_VERBOSE')[0][:300]}", False
    return f"{type(error).__name__}: {text[:300]}", True


def _tie_to_parent(parent: int) -> None:
    """On Linux: be the first to go when memory runs out, and end with the process that waits for the answer."""
    if sys.platform != "linux":
        return
    import ctypes
    import signal

    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the process that asked for this measurement is gone")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
