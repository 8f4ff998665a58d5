"""Records of schema 1, read as today's: they held one series of samples with parallel lists for its visits or seeds,
and did not say what kind of quantity a measurement is.

The tables of names here are for those files alone. A name that none of them holds, of a metric from elsewhere, has the
kind of its unit and its name as title.
"""

from typing import Any

KIND_OF_UNIT = {
    "count": "counted", "MAC": "counted", "elements": "counted", "1": "counted", "bytes": "sized",
    "bytes, predicted": "sized", "clips": "sized", "percent": "scored",
}  # fmt: skip
KIND = {"bytes_moved": "counted"} | {
    f"training_{part}": "shared" for part in ("parameters", "gradients", "optimizer_state", "activations")
}
TITLE = {
    "params": "parameters",
    "params_with_classifier": "parameters with classifier",
    "macs": "multiply-adds",
    "macs_with_classifier": "multiply-adds with classifier",
    "layernorm_elements": "LayerNorm elements",
    "batchnorm_elements": "BatchNorm elements",
    "training_latency": "training step",
    "predicted_training_memory": "training memory, predicted",
    "energy": "energy per clip",
    "largest_batch_throughput": "throughput at the largest batch",
    "training_largest_batch": "largest batch in training",
    "training_largest_batch_throughput": "throughput at the largest batch in training",
    "training_parameters": "parameters in training",
    "training_gradients": "gradients in training",
    "training_optimizer_state": "optimizer state in training",
    "training_activations": "activations in training",
    "time_total": "profiled pass",
}
EXPLAINS = ("params_with_classifier", "macs_with_classifier")  # and the parts of macs: `better` was lower, and is none
BUILT_IN = ("motion_small", "motion", "motion_large")
PREFIX = {"time_": "time in ", "macs_": "multiply-adds in "}
OF_A_VISIT = ("started", "measured", "warm_up", "settled", "compile_seconds", "parts_ms")
OF_A_SEED = {
    "seeds": "seed", "jobs": "job", "coverage": "coverage", "replaced": "replaced", "intervals": "interval",
    "top5": "top5", "mean_class": "mean_class", "seconds": "seconds", "shuffled": "shuffled", "single": "single",
}  # fmt: skip


def upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it would be written today. Raises: KeyError or TypeError where it is not whole."""
    source = record.get("provenance") or {}
    stand_in = f"{source.get('started')} {source.get('commit')}"  # of visits from before they named their run
    measurements = {
        name: measurement(**raw, run=f"{stand_in} {raw.get('details', {}).get('commit')}")
        for name, raw in record["measurements"].items()
    }
    return {**record, "schema": 2, "measurements": measurements}


def measurement(
    name: str,
    unit: str,
    better: str = "none",
    samples: Any = (),
    missing: str | None = None,
    retry: bool = False,
    details: dict[str, Any] | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """One measurement as it would be written today; `run` stands for the run of visits that do not name theirs."""
    details = dict(details or {})
    if name.startswith("top1_"):
        _, budget, *data = name.split("_", 2)
        details = {"budget": budget, "data": data[0] if data else BUILT_IN[0]} | details
        details = {"built_in": details["data"] in BUILT_IN, "published_recipe": budget == "full"} | details
    kind = KIND.get(name) or ("shared" if name.startswith("time_") else KIND_OF_UNIT.get(unit, "timed"))
    return {
        "name": name,
        "kind": kind,
        "title": TITLE.get(name) or _title(name),
        "unit": unit,
        "better": "none" if name in EXPLAINS or name.startswith("macs_") else better,
        "visits": (_seeds if kind == "scored" else _visits)(list(samples), details, run),
        "missing": missing,
        "retry": retry,
        "rounds_wanted": details.pop("rounds_wanted", 1),
        "failed_rounds": details.pop("failed_rounds", {}),
        "details": details,
    }


def _title(name: str) -> str:
    for prefix, words in PREFIX.items():
        if name.startswith(prefix):
            name = words + name.removeprefix(prefix)
    if name.startswith("top1_"):
        return "top-1"
    return name.replace("_", " ")


def _visits(samples: list, details: dict[str, Any], run: str | None) -> list[dict[str, Any]]:
    """The samples of each round; what a visit says of itself leaves the details. One that names no rounds is one."""
    rounds = details.pop("rounds", None) or [1] * len(samples)
    by_round = {visit["round"]: visit for visit in details.pop("visits", ())}
    last = details.pop("run", None)
    visits = []
    for number in dict.fromkeys(rounds):
        visit = by_round.get(number) or ({"run": last} if last and not by_round else {})
        noted = {key: visit[key] for key in OF_A_VISIT if key in visit}
        in_round = [sample for place, sample in zip(rounds, samples, strict=True) if place == number]
        visits.append({"samples": in_round, "round": number, "run": visit.get("run") or run, "details": noted})
    if by_round:
        for key in OF_A_VISIT:
            details.pop(key, None)
    return visits


def _seeds(samples: list, details: dict[str, Any], run: str | None) -> list[dict[str, Any]]:
    """A visit for each seed, with its entry of each list."""
    lists = {new: details.pop(old) for old, new in OF_A_SEED.items() if isinstance(details.get(old), list)}
    run = details.pop("run", None) or run
    return [
        {
            "samples": [sample],
            "round": 1,
            "run": run,
            "details": {"seed": place} | {key: values[place] for key, values in lists.items() if place < len(values)},
        }
        for place, sample in enumerate(samples)
    ]
