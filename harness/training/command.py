"""A training that a command line asks for, told to a person or a program at its end."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.training import loop
from harness.training.job import Job, Result, Stopped
from harness.training.stopping import stopping
from records import provenance
from records.terminal import json_line


def train(job: Job, as_json: bool) -> int:
    """Returns the exit status."""
    first = int(os.environ.get("RANK", "0")) == 0
    if first and (warning := provenance.crowded(threads=job.threads, workers=job.workers)):
        print(warning, file=sys.stderr)
    try:
        with stopping() as stop:
            result = loop.train(job, Console(stderr=True), stop)
    except Stopped as stopped:
        if first:
            print(stopped, file=sys.stderr)
        return 130
    except loop.ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if first:
        print("\n".join(in_words(result, job.folder)))
    if first and as_json:
        json_line({"status": 0, "folder": str(job.folder), **asdict(result)})
    return 0


def in_words(result: Result, folder: Path) -> list[str]:
    """The result as a person reads it."""

    def figure(scores: dict[str, Any], name: str) -> str:
        value = scores[name]
        return f"{value['value']:.2f} % [{value['low']:.2f}, {value['high']:.2f}]"

    scores = result.scores
    lines = [
        f"top-1 {figure(scores, 'top1')}, top-5 {figure(scores, 'top5')}, mean class {figure(scores, 'mean_class')}; "
        f"{scores['decoded']} of {scores['videos']} videos decoded"
    ]
    if scores["decoded"] < scores["videos"]:
        lines.append(
            f"what could not be decoded counts as missed; once it can be, remove {folder}/result.json and give the "
            "same command: it alone is tried again"
        )
    lines += [
        f"  {name}: top-1 {figure(set_scores, 'top1')}, {set_scores['videos']} videos"
        for name, set_scores in result.sets.items()
    ]
    lines += [f"control, {order} frames: top-1 {figure(control, 'top1')}" for order, control in result.controls.items()]
    if result.training:
        end = f"at the end of training {result.training['curve'][-1]:.1f} % of its clips were answered right"
        lines.append(f"{result.trouble}: {end}" if result.trouble else end)
    seconds = result.seconds
    part = "" if result.trained is None else f" ({result.trained / 1e6:.3f} M trained)"
    lines.append(
        f"{result.steps} steps in {seconds['train']:.0f} s ({result.clips_per_second:.1f} clips/s, "
        f"{100 * result.data_wait:.0f} % waiting for data), evaluation {seconds['evaluate']:.0f} s; "
        f"{result.parameters / 1e6:.3f} M parameters{part}, "
        f"{result.replaced} clip{'s' * (result.replaced != 1)} replaced"
    )
    return [*lines, f"{folder}: result.json, {result.checkpoint}"]
