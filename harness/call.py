"""What one call of the command line asks for: one value, read by all that carries it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from harness.deadline import Deadline
from harness.spec.budget import Training
from harness.spec.case import Ablation, Settings
from records.visits import QUICK_ROUNDS, ROUNDS

TIME_LIMIT = 900.0  # seconds for one visit to a case


@dataclass(frozen=True)
class Call:
    """Some ablations, how they are measured, and where all that comes of it goes."""

    ablations: list[Ablation]
    settings: Settings  # of every case
    metrics: list[str] | None  # their names; None: each ablation's own
    out: Path  # folder of records and reports
    training: Training = Training()  # of the rows, where accuracy is wanted
    force: bool = False  # measure again what is there
    rounds: int | None = None  # visits to every case among which its timing is split; None: as usual
    time_limit: float | None = None  # seconds for one visit; None: as usual
    deadline: Deadline = field(default_factory=Deadline.never)  # nothing is begun once it has passed
    console: Console = field(default_factory=lambda: Console(quiet=True))  # of results
    progress: Console | None = None  # where what is being done is said; None: among the results
    # Words of the command line, with which the call says how to go on and how to make a report again; the words for
    # the latter where they are others.
    arguments: tuple[str, ...] = ()
    remake: tuple[str, ...] | None = None
    # Where the settings make other cases than an ablation has by itself, keep their records in a folder below its own.
    apart: bool = True
    as_json: bool = False  # the last line of the standard output is for programs
    part_of: str | None = None  # the name of a run that has more parts
    earlier: tuple[Path, ...] = ()  # the folders of those before, whose measurements it shares

    @property
    def quick(self) -> bool:
        return self.settings.quick

    @property
    def visits(self) -> int:
        return self.rounds or (QUICK_ROUNDS if self.quick else ROUNDS)

    @property
    def visit_seconds(self) -> float:
        return self.time_limit or TIME_LIMIT

    @property
    def log(self) -> Console:
        return self.progress or self.console
