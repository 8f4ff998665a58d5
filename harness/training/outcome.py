"""The result of a run out of what it has counted and predicted."""

from __future__ import annotations

from typing import Any

from harness.evaluation.predictions import DECODERS, RUN, Predictions
from harness.evaluation.scores import scores as score
from harness.training import state
from harness.training.distributed import Group
from harness.training.job import Job, Result, digest
from harness.training.journal import Counters
from harness.training.start import Schedule
from records import provenance


def outcome(
    job: Job,
    schedule: Schedule,
    group: Group,
    counters: Counters,
    predictions: Predictions,
    controls: dict[str, Predictions],
    *,
    content: dict[str, Any],
    kernel: str,
    parameters: int,
    seconds: float,
) -> Result:
    """What result.json holds. `content`: digests of the data, by split; `seconds`: of all starts of the run."""
    found, device = score(predictions), str(group.device)
    train_seconds, test_seconds = counters.training_seconds, counters.evaluating_seconds
    return Result(
        scores=found.to_dict(),
        controls={order: score(of_one).to_dict() for order, of_one in controls.items()},
        steps=counters.step,
        epochs=counters.step / schedule.per_epoch,
        loss=counters.loss,
        parameters=parameters,
        seconds={"train": round(train_seconds, 3), "evaluate": round(test_seconds, 3), "total": round(seconds, 3)},
        clips_per_second=counters.clips / max(train_seconds, 1e-9),
        data_wait=counters.waiting_seconds / max(train_seconds, 1e-9),
        replaced=counters.replaced,
        coverage=found.coverage,
        job=job.digest,
        recipe=digest(job.recipe.to_dict()),
        data={"train": content["data.train"], "test": content[f"data.{job.test_split}"]},
        checkpoint=f"{state.FOLDER}/{state.name_of(counters.step)}/{state.WEIGHTS}",
        provenance={
            **provenance.collect(),
            **provenance.of_torch(device),
            "machine": provenance.machine(device),
            "kernel": kernel,
            "processes": group.world,
            "strategy": job.strategy,
            "micro_batch": schedule.micro,
            "workers": job.workers,
            DECODERS: predictions.facts.get(RUN, {}).get(DECODERS, {}),  # of the test videos
        },
        history=counters.history,
    )
