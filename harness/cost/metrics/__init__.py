"""Metrics: what can be measured of a case. One file each; a file added here is found by the command line, the tests and
the help.

A metric that is *counted* is a function of the case and runs at once. A metric that is *timed* is a function of a
`Workload` (a loaded model with its clip) and runs in a process of the case's own, shared by the metrics that name the
same `process`. Both return measurements; what does not apply to a case is a `Measurement` with `missing`, not an
exception. A command line checks names with `declared`, which imports none of these modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from attention_zoo.registry import Registry
from records.record import Measurement, Quantity


@dataclass(frozen=True)
class Metric:
    """What can be measured. What one metric of a process lacks, memory or support, the ones after it lack too."""

    name: str
    run: Callable[[Any], list[Measurement]]
    measures: dict[str, Quantity]  # by name, what `run` returns
    timed: bool
    order: int  # of timed metrics that share a process
    process: str
    once: bool = False  # measured in the first round only
    # About how long a visit takes, in quick mode or not, where that does not follow from the samples of a series.
    seconds: Callable[[bool], float] | None = None

    def missing(self, reason: str, *, retry: bool, details: dict[str, Any] | None = None) -> list[Measurement]:
        """The measurements of this metric, all absent for one reason."""
        return [quantity.absent(reason, retry=retry, details=details) for quantity in self.measures.values()]


registry: Registry[Metric] = Registry("metric", __name__, group="attention_zoo.metrics")
get, declared = registry.get, registry.declared


def register(
    name: str,
    *measures: Quantity,
    timed: bool = False,
    order: int = 0,
    process: str = "forward",
    once: bool = False,
    seconds: Callable[[bool], float] | None = None,
):
    """Decorator that adds a metric: what it measures, each with kind, title, unit and direction, and how it runs.

    Reports, CSV, terminal and comparison show a quantity by what it says of itself. A taken name is an error.
    """

    def add(run: Callable[[Any], list[Measurement]]) -> Callable[[Any], list[Measurement]]:
        measured = {quantity.name: quantity for quantity in measures}
        registry.register(name)(Metric(name, run, measured, timed, order, process, once, seconds))
        return run

    return add


def _place(metric: Metric) -> tuple:
    return metric.timed, metric.process != "forward", metric.process, metric.order, metric.name


def names() -> list[str]:
    """All metrics: counted ones first, timed ones in the order in which they run."""
    return sorted(registry.names(), key=lambda name: _place(get(name)))


def by_process(chosen: Iterable[Metric]) -> list[list[Metric]]:
    """Timed metrics, those of one process together."""
    shared: dict[str, list[Metric]] = {}
    for metric in chosen:
        shared.setdefault(metric.process, []).append(metric)
    return list(shared.values())
