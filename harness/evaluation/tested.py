"""A checkpoint tested on a data set: predictions for all views, scores, a table of classes, what is told of them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.clips.reading import LoadingError
from harness.datasets import DataSet
from harness.datasets.several import name_of
from harness.evaluation import trained, views
from harness.evaluation.predictions import DECODERS, FILE, RUN, Predictions, PredictionsError
from harness.evaluation.protocol import OUT, listed
from harness.evaluation.scores import Scores, by_views, scores
from harness.progress import console_of_errors, line
from harness.spec.reader import UsageError
from records.intervals import Interval
from records.record import write_bytes, write_text
from records.terminal import json_line
from reports import confusion, text

if TYPE_CHECKING:
    from harness.evaluate import Options

SHOWN = 5  # failures, and classes, that are named on the screen


def evaluate(options: Options, view_counts: tuple[int, int] | None, dataset: DataSet | None) -> int:
    """Returns the exit status. Raises: UsageError."""
    try:
        several = (
            trained.each(options, view_counts) if dataset is None else [trained.load_trained(options, view_counts)]
        )
    except trained.SeveralSets as error:
        chosen = dataset and error.of(name_of(options.data), len(dataset.classes))
        if not chosen:
            raise
        several = [trained.load_trained(replace(options, set=chosen), view_counts)]
    tested = [_evaluated(options, loaded, dataset, beside=len(several) > 1) for loaded in several]
    if options.json:
        json_line({"status": int(None in tested), "tests": [test for test in tested if test]})
    return int(None in tested)


def _evaluated(options: Options, loaded: trained.Trained, dataset: DataSet | None, beside: bool) -> dict | None:
    """Returns what programs are told, None where there are no scores.

    `beside`: whether other data sets of the same model are tested as well.
    """
    if dataset is None:
        if loaded.data is None:
            raise UsageError("data is missing; give data=NAME and root=FOLDER, or data=FOLDER of clips")
        dataset = listed(options, loaded.data, options.root or loaded.root, loaded.data_options | options.data_changes)
    data = Path(options.data or loaded.data).name  # of a folder the last part
    dataset = of_checkpoint(dataset, data, loaded)
    digest = views.weights_digest(loaded.model)
    protocol = replace(loaded.protocol, workers=options.workers, order=options.order or loaded.protocol.order)
    layout = f"{protocol.testing.clips}x{protocol.testing.crops}"
    folder = Path(options.out) if options.out else OUT / f"{data}-{dataset.split}-{layout}-{digest[:8]}"
    folder = folder / loaded.set if options.out and beside else folder
    print(f"{loaded.title}, weights {digest[:8]}")
    print(f"{data} {dataset.split}: {len(dataset)} videos; {protocol}", end="")
    print(f"; frames {protocol.order}" if protocol.order != "ordered" else "", flush=True)
    try:
        with line(console_of_errors()) as say:
            predictions = views.predict(
                loaded.model,
                dataset,
                protocol,
                say=say,
                keep=folder / FILE,
                save_every_seconds=options.save_every_seconds,
                facts={"model": loaded.name, "config": loaded.model.config.to_dict()},
            )
        if reason := predictions.none_decoded():
            print(f"error: {data} {dataset.split}: {reason}", file=sys.stderr)
            return None
        score = scores(predictions)
    except (PredictionsError, OSError) as error:
        raise UsageError(str(error)) from error
    except LoadingError as error:
        print(f"error: {error}", file=sys.stderr)
        return None
    print(summary(score, predictions))
    try:
        write_scores(folder, score, predictions)
    except OSError as error:
        raise UsageError(f"{folder}: the scores cannot be written: {error}") from error
    names = [FILE, "scores.json", "per_class.csv", "per_class.md", "confusion.png"]
    print(f"written to {folder}: {', '.join(name for name in names if (folder / name).is_file())}")
    figures = ("top1", "top5", "mean_class", "coverage", "videos", "decoded")
    values = {name: value for name, value in score.to_dict().items() if name in figures}
    return {"model": loaded.name, "data": data, "folder": str(folder), **values}


def of_checkpoint(dataset: DataSet, data: str, loaded: trained.Trained) -> DataSet:
    """The data set with the checkpoint's classes: a list that names none, and holds some of them, is of all of them.

    Raises: UsageError, where model and data set do not mean the same classes.
    """
    count, answers = len(dataset.classes), loaded.model.num_classes
    unnamed = list(dataset.classes) == [str(number) for number in range(count)]
    names_only_there = count == answers and loaded.named and list(loaded.classes) != list(dataset.classes)
    if unnamed and (count < answers or names_only_there):
        print(f"{data} names no classes: its labels, up to {count - 1}, are taken as the checkpoint's, of {answers}")
        return replace(dataset, classes=tuple(loaded.classes) if loaded.named else tuple(map(str, range(answers))))
    if count != answers:
        raise UsageError(
            f"{data} has {count} classes, the checkpoint answers for {answers}: it was trained on another data set, or "
            f"on all classes of this one, and then data.classes=FILE with the names of all {answers}, one a line in "
            "the order of the labels, settles it (data.subset=true numbers those that are there anew, and cannot fit)"
        )
    return matched(dataset, data, loaded.classes) if loaded.named else dataset


def matched(dataset: DataSet, data: str, classes: Sequence[str]) -> DataSet:
    """The data set with labels that count the classes of a checkpoint, which has the same ones in any order.

    Raises: UsageError, where one is not the data set's.
    """
    if list(classes) == list(dataset.classes):
        return dataset
    numbers = {_spelled(name): number for number, name in enumerate(classes)}
    strange = next((name for name in dataset.classes if _spelled(name) not in numbers), None)
    if strange is not None or len(numbers) < len(classes):
        number = next(i for i, (a, b) in enumerate(zip(classes, dataset.classes, strict=True)) if a != b)
        raise UsageError(
            f"class {number} is {classes[number]!r} for the checkpoint, {dataset.classes[number]!r} in {data}"
            + (f", and the checkpoint has no {strange!r}" if strange is not None else "")
            + ": it is another data set, or other names of its classes (classes=FILE gives the checkpoint's)"
        )
    order = [numbers[_spelled(name)] for name in dataset.classes]
    if order != sorted(order):
        print(f"{data} counts its classes in another order than the checkpoint: they are matched by their names")
    mirror = dataset.mirror and {order[label]: order[flipped] for label, flipped in dataset.mirror.items()}
    items = tuple(replace(item, label=order[item.label]) for item in dataset.items)
    return replace(dataset, items=items, classes=tuple(classes), mirror=mirror)


def _spelled(name: str) -> str:
    """A name as it counts in a comparison: lists of one data set differ in capitals, quotes and underscores."""
    return re.sub(r"[\W_]+", "", name).lower()


def summary(score: Scores, predictions: Predictions) -> str:
    """What a person reads at the end."""
    few = " (says nothing with so few classes)" if len(predictions.classes) <= 5 else ""
    lines = [
        f"top-1       {in_words(score.top1)}",
        f"top-5       {in_words(score.top5)}{few}",
        f"mean class  {in_words(score.mean_class)}",
        f"coverage    {100 * score.coverage:.1f} % ({score.decoded} of {score.videos} videos; the rest count as misses)"
        if score.decoded < score.videos
        else f"coverage    100 % ({score.videos} videos)",
    ]
    failures = list(predictions.failures.items())
    lines += [f"    {reason}" if name in reason else f"    {name}: {reason}" for name, reason in failures[:SHOWN]]
    if len(failures) > SHOWN:
        lines.append(f"    and {len(failures) - SHOWN} more, see scores.json")
    decoders = predictions.facts.get(RUN, {}).get(DECODERS, {})
    if decoders:
        lines.append(f"decoded by  {', '.join(f'{name} ({count})' for name, count in decoders.items())}")
    wrong = (row for row in score.per_class if row.right < row.videos)
    worst = sorted(wrong, key=lambda row: (row.right / row.videos, row.index))
    if worst:
        lines.append("hardest classes")
        for row in worst[:SHOWN]:
            times = "once" if row.confused == 1 else f"{row.confused} times"
            confused = f", taken for {row.confused_with} {times}" if row.confused_with else ""
            lines.append(f"    {row.name}: {row.right} of {row.videos}{confused}")
    return "\n".join(lines)


def in_words(percent: Interval) -> str:
    return f"{percent.value:.1f} % [{percent.low:.1f}, {percent.high:.1f}]"


def write_scores(folder: Path, score: Scores, predictions: Predictions) -> None:
    """scores.json (with accuracy against views), per_class.csv, per_class.md and confusion.png. Raises: OSError."""
    content = score.to_dict() | {
        "by_views": by_views(predictions) if predictions.is_grid else [],
        "failures": predictions.failures,
        "facts": predictions.facts,
    }
    rows = [_row(row) for row in content["per_class"]]
    write_text(json.dumps(content, ensure_ascii=False) + "\n", folder / "scores.json")
    write_text(text.table_csv(rows, rows[0]), folder / "per_class.csv")
    write_text(_markdown(score), folder / "per_class.md")
    if len(predictions.classes) > 1:
        write_bytes(confusion.picture(content), folder / "confusion.png")


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    figures = {
        f"{name}{suffix}": entry[name][key] if entry[name] else None
        for name in ("top1", "top5")
        for key, suffix in (("value", "_percent"), ("low", "_low"), ("high", "_high"))
    }
    names = {"index": entry["index"], "class": entry["name"]}
    counts = {name: entry[name] for name in ("videos", "decoded", "right")}
    return names | counts | figures | {"confused_with": entry["confused_with"], "confused": entry["confused"]}


def _markdown(score: Scores) -> str:
    columns: text.Columns = [
        ("class", lambda row: row.name),
        ("videos", lambda row: str(row.videos)),
        ("decoded", lambda row: str(row.decoded)),
        ("top-1, % ↑", lambda row: f"{row.top1.value:.1f}" if row.top1 else text.MISSING),
        ("95 % interval", lambda row: f"{row.top1.low:.1f} to {row.top1.high:.1f}" if row.top1 else text.MISSING),
        ("most often taken for", lambda row: f"{row.confused_with} ({row.confused})" if row.confused_with else "—"),
    ]
    mean, total = score.mean_class, f"{score.videos} | {score.decoded}"
    last = f"| **mean of the classes** | {total} | {mean.value:.1f} | {mean.low:.1f} to {mean.high:.1f} | |"
    return f"{text.table_lines(score.per_class, columns)}\n{last}\n"
