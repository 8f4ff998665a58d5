"""What the schemes of a case can see: the answers of tiny models, one training for each question (harness/probes).

Two blocks with the schemes of the case's first stage, on maps of 64 tokens, with the options that a scheme names as its
`example`, so that windows are smaller than the maps; what the case changes in its model goes before. Each round is one
seed. Nothing here is timed: the trainings of a visit run side by side, each on one thread.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

import backbones
from attention_zoo import schemes
from harness.cost.metrics import register
from harness.cost.workload import Workload
from harness.probes.tasks import TASKS
from harness.probes.train import FULL, QUICK, Block, Effort, Probe, train
from harness.spec.case import Case
from records import provenance
from records.record import Measurement, Quantity

PROBES = {name: Quantity(f"probe_{name}", "probed", task.title, "percent", "higher") for name, task in TASKS.items()}
RECALL = ("space", "time")
RATE = 600.0  # maps a second that one process trains on, in a scheme of middling speed: for a plan


def predicted(questions: int, maps: int) -> float:
    """Seconds of the trainings of one visit, as many at a time as there are cores."""
    return -(-questions // provenance.default_threads()) * maps / RATE


def _effort(quick: bool) -> Effort:
    return QUICK if quick else FULL


@register(
    "probes", *PROBES.values(), timed=True, process="probes",
    seconds=lambda quick: predicted(len(PROBES), _effort(quick).maps),
)  # fmt: skip
def probes(workload: Workload) -> list[Measurement]:
    """Mean accuracy over the values of each question's dial; each value, the reach and the curve are in the details."""
    return probed(workload, tuple(PROBES), _effort(workload.effort.quick))


@register(
    "recall", *(PROBES[name] for name in RECALL), timed=True, process="recall",
    seconds=lambda quick: predicted(len(RECALL), _effort(quick).maps),
)  # fmt: skip
def recall(workload: Workload) -> list[Measurement]:
    """Two of the questions alone, in a third of the trainings: what a dial of a scheme does to how far it sees."""
    return probed(workload, RECALL, _effort(workload.effort.quick))


def probed(workload: Workload, names: tuple[str, ...], effort: Effort) -> list[Measurement]:
    """The answers to some questions, each of a training."""
    case, surroundings = workload.case, workload.surroundings()
    if case.dtype != "float32" or workload.device.type != "cpu":
        reason = f"probes are trained in float32 on the CPU, not in {case.dtype} on {case.device}"
        return [PROBES[name].absent(reason, details={"machine": workload.machine}) for name in names]
    blocks = blocks_of(case)
    # Forked before this process has computed anything: threads would not survive it.
    with ProcessPoolExecutor(provenance.default_threads(), multiprocessing.get_context("fork")) as pool:
        answers = {name: pool.submit(answer, name, blocks, workload.round, effort, case.kernel) for name in names}
        return [measured(name, blocks, workload.round, effort, answers[name].result(), surroundings) for name in names]


def answer(name: str, blocks: list[Block], seed: int, effort: Effort, kernel: str) -> dict[str, Any] | str:
    """What one training gave, or why a scheme refuses the grid. Runs in a process of its own."""
    torch.set_num_threads(1)
    try:
        with torch.device("meta"):
            Probe(TASKS[name], blocks, kernel)
    except ValueError as error:
        return f"not on a map of {'x'.join(map(str, TASKS[name].grid))}: {error}"
    return train(TASKS[name], blocks, seed, effort, kernel)


def measured(
    name: str, blocks: list[Block], seed: int, effort: Effort, result: dict[str, Any] | str, details: dict[str, Any]
) -> Measurement:
    """The measurement of one question."""
    if isinstance(result, str):
        return PROBES[name].absent(result, details={"machine": details["machine"]})
    task = TASKS[name]
    muon = f", Muon at {effort.muon:g} for the matrices of the blocks" if effort.muon else ""
    settings = {
        "asks": task.asks,
        "dial": task.dial,
        "values": list(task.values),
        "grid": list(task.grid),
        "chance": 100 / task.classes,
        "tested": effort.tested,
        "trained": f"{effort.steps} steps of {effort.batch} maps, largest learning rate {effort.rate:g}{muon}",
        "last_maps": effort.steps // 10 * effort.batch,
        "blocks": [f"{block.scheme} {block.options}" if block.options else block.scheme for block in blocks],
    }
    mean = sum(result["by_dial"]) / len(result["by_dial"])
    return PROBES[name].of([mean], {**details, **settings, "seed": seed, **result})


def blocks_of(case: Case) -> list[Block]:
    """Two blocks: the pattern of the first stage, repeated. Raises: ValueError for a family without such stages."""
    config = case.config
    if "stages" not in config or "attention" not in config:
        raise ValueError(f"model {case.model!r} has no stages with attention schemes; probes are of pyramids")
    usual = backbones.config(case.model).to_dict()["attention"]
    blocks = []
    for place in range(2):
        word = config["stages"][0][place % len(config["stages"][0])]
        entry = config["attention"].get(word, {"scheme": word})
        changes = {key: value for key, value in entry.items() if usual.get(word, {}).get(key, ...) != value}
        scheme = entry["scheme"]
        changed = {key: value for key, value in changes.items() if key != "scheme"}
        blocks.append(Block(scheme, {**schemes.get(scheme).example, **changed}))
    return blocks
