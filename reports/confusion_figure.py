"""The picture of a confusion matrix, legible from two classes to some hundred."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure

from reports.confusion import LONGEST, NAMES, NUMBERS, mistakes, shares
from reports.drawing import DPI, FAINT, INK, MEASURED
from reports.text import counted as words

LETTER = 0.077  # inches of a letter at size 9
LISTED = 5.0  # inches that the list of mistakes takes


def matrix(scores: dict[str, Any], counts: np.ndarray, classes: list[str]) -> tuple[Figure, str]:
    """Labels down, answers across; a list of the largest mistakes stands beside what has no numbers."""
    k = len(classes)
    numbered, named = k <= NUMBERS, k <= NAMES
    side = min(8.6, max(2.2, k * (0.5 if k <= 8 else 0.36)))
    small = 9 if numbered else max(5.0, 9 * side / 8.6 * 34 / k) if named else 8
    shown = [_short(name) for name in classes]
    room = max(map(len, shown)) * LETTER * small / 9 + 0.25
    listed = [] if numbered else mistakes(counts, classes)
    left, right, head, foot = 0.3 + room, 0.5 + (LISTED if listed else 0.0), 0.75, 0.2 + room
    wide, tall = max(left + side + right, 6.4), head + side + foot
    figure = Figure(figsize=(wide, tall), dpi=DPI)
    axes = figure.add_axes((left / wide, foot / tall, side / wide, side / tall))
    percent = shares(counts)
    blues = LinearSegmentedColormap.from_list("share", ["#FFFFFF", "#A3CCE6", MEASURED, "#003A5D"])
    norm = Normalize(0, 100) if numbered else PowerNorm(0.5, 0, 100)  # without numbers, small shares are to be seen too
    axes.imshow(percent, cmap=blues, norm=norm, interpolation="nearest", aspect="equal")
    if numbered:
        _numbers(axes, percent)
    step = 1 if named else -(-k // 40)
    places = list(range(0, k, step))
    axes.set_xticks(places, [shown[i] for i in places], rotation=90, fontsize=small)
    axes.set_yticks(places, [shown[i] for i in places], fontsize=small)
    axes.tick_params(length=0 if named else 2, pad=3)
    if named and not numbered:
        axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#EEEEEE", lw=0.4)
        axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(FAINT)
    figure.text(0.3 / wide, 1 - 0.24 / tall, _title(scores, counts), fontsize=10.5, weight="bold", va="center")
    note = "Rows: the label; columns: the answer. In % of each label's videos" + (
        ", 0 left out." if numbered else "; darker is more."
    )
    note += "" if named else f" Every {step}{_th(step)} class is named."
    figure.text(0.3 / wide, 1 - 0.5 / tall, note, fontsize=8.5, color="#5A5A5A", va="center")
    if listed:
        _list(figure, listed, (left + side + 0.35) / wide, 1 - head / tall, tall)
    return figure, f"Confusion matrix of {k} classes"


def _title(scores: dict[str, Any], counts: np.ndarray) -> str:
    total = int(counts.sum())
    right = 100 * np.trace(counts) / total if total else 0.0
    videos = scores.get("videos", total)
    if videos > total:
        return f"{right:.1f} % of {words(total, 'decoded video')} right; {videos - total} could not be decoded"
    return f"{right:.1f} % of {words(total, 'video')} right"


def _numbers(axes: Axes, percent: np.ndarray) -> None:
    for (i, j), value in np.ndenumerate(percent):
        if round(value):
            color = "white" if value > 55 else INK
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8.5, color=color)


def _list(figure: Figure, listed: list[tuple[str, str, int, int]], x: float, top: float, tall: float) -> None:
    figure.text(x, top, "taken most often for another", fontsize=9, weight="bold", va="top")
    for line, (label, answer, wrong, total) in enumerate(listed, start=1):
        text = f"{_short(label, 28)} → {_short(answer, 28)}: {wrong} of {total}"
        figure.text(x, top - 0.21 * line / tall, text, fontsize=8, va="top", color=INK)


def _short(name: str, most: int = LONGEST) -> str:
    """Both ends of a long name: many differ in their last word alone."""
    if len(name) <= most:
        return name
    end = (most - 1) // 2
    return f"{name[: most - 1 - end].rstrip()}…{name[-end:].lstrip()}"


def _th(number: int) -> str:
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
