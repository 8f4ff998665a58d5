"""The picture of a confusion matrix, legible from two classes to some hundred."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from reports.drawing import FAINT, INK, MEASURED, picture_of, sheet
from reports.text import counted as words

NUMBERS = 24  # up to so many classes each cell holds its number
NAMES = 70  # up to so many every class is named
LONGEST = 32  # letters of a name
LARGEST = 20  # of the mistakes, listed beside a matrix whose numbers cannot be read
LETTER = 0.077  # inches of a letter at size 9
LISTED = 5.0  # inches that the list of mistakes takes


def picture(scores: dict[str, Any], counts: np.ndarray, classes: list[str], file: Path) -> bytes:
    return picture_of(lambda: matrix(scores, counts, classes), file)


def matrix(scores: dict[str, Any], counts: np.ndarray, classes: list[str]) -> tuple[Figure, str]:
    """Labels down, answers across; a list of the largest mistakes stands beside what has no numbers."""
    k = len(classes)
    numbered, named = k <= NUMBERS, k <= NAMES
    side = min(8.6, max(2.2, k * (0.5 if k <= 8 else 0.36)))
    small = 9 if numbered else max(5.0, 9 * side / 8.6 * 34 / k) if named else 8
    shown, step = [_short(name) for name in classes], 1 if named else -(-k // 40)
    room = max(map(len, shown)) * LETTER * small / 9 + 0.4
    listed = [] if numbered else mistakes(counts, classes)
    note = "Rows: the label; columns: the answer. In % of each label's videos"
    note += ", 0 left out." if numbered else "; darker is more."
    note += "" if named else f" Every {step}{_th(step)} class is named."
    wide = max(room + side + (LISTED if listed else 0.0), 6.4)
    figure = sheet(side + room + 0.4, _source(scores), [note], wide=wide)
    ratios = (room + side, LISTED) if listed else (1,)
    axes, *beside = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    figure.suptitle(_title(scores, counts), x=0.02, ha="left", fontsize=10.5, weight="bold")
    percent = shares(counts)
    blues = LinearSegmentedColormap.from_list("share", ["#FFFFFF", "#A3CCE6", MEASURED, "#003A5D"])
    # Without numbers small shares are to be seen too; numpy's root is the same on all processors, its power is not.
    values, most = (percent, 100) if numbered else (np.sqrt(percent), 10)
    axes.imshow(values, cmap=blues, vmin=0, vmax=most, interpolation="nearest", aspect="equal")
    if numbered:
        _numbers(axes, percent)
    places = list(range(0, k, step))
    axes.set_xticks(places, [shown[i] for i in places], rotation=90, fontsize=small)
    axes.set_yticks(places, [shown[i] for i in places], fontsize=small)
    axes.tick_params(length=0 if named else 2, pad=3)
    axes.spines[:].set(visible=True, color=FAINT)
    if named and not numbered:
        axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#EEEEEE", lw=0.4)
        axes.tick_params(which="minor", length=0)
    for list_axes in beside:
        lines = [f"{_short(label, 28)} → {_short(answer, 28)}: {wrong} of {n}" for label, answer, wrong, n in listed]
        list_axes.set_axis_off()
        list_axes.set_title("taken most often for another", fontsize=9)
        list_axes.text(0, 1, "\n".join(lines), fontsize=8, va="top", linespacing=1.5, transform=list_axes.transAxes)
    return figure, f"Confusion matrix of {k} classes"


def shares(counts: np.ndarray) -> np.ndarray:
    """Each cell in percent of the videos of its label; 0 where the label has none."""
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(100.0 * counts, total, out=np.zeros(counts.shape), where=total > 0)


def mistakes(counts: np.ndarray, classes: list[str], most: int = LARGEST) -> list[tuple[str, str, int, int]]:
    """The largest cells off the diagonal: label, answer, how many of how many videos; most videos first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(counts)) for place in order]
    return [(classes[i], classes[j], int(wrong[i, j]), int(counts[i].sum())) for i, j in pairs if wrong[i, j]]


def _source(scores: dict[str, Any]) -> str:
    """Model, data and device of an evaluation, as far as its scores say them."""
    facts = scores.get("facts") or {}
    run = facts.get("run") or {}
    parts = [facts.get("model"), facts.get("data"), run.get("device")]
    return " · ".join(str(part) for part in parts if isinstance(part, str))


def _title(scores: dict[str, Any], counts: np.ndarray) -> str:
    total = int(counts.sum())
    right = 100 * np.trace(counts) / total if total else 0.0
    lost = scores.get("videos", total) - total
    videos = f"{words(total, 'decoded video')} right; {lost} could not be decoded" if lost > 0 else ""
    return f"{right:.1f} % of {videos or words(total, 'video') + ' right'}"


def _numbers(axes: Axes, percent: np.ndarray) -> None:
    for (i, j), value in np.ndenumerate(percent):
        if round(value):
            color = "white" if value > 55 else INK
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8.5, color=color)


def _short(name: str, most: int = LONGEST) -> str:
    """Both ends of a long name: many differ in their last word alone."""
    if len(name) <= most:
        return name
    end = (most - 1) // 2
    return f"{name[: most - 1 - end].rstrip()}…{name[-end:].lstrip()}"


def _th(number: int) -> str:
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
