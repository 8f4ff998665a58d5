"""One call of the command line, as plain values: what it means is settled and checked here, without torch."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

from harness.accuracy.setup import Setup, check
from harness.call import Call
from harness.clips.decoding import VideoError, check_clip, file_digest
from harness.cost import metrics
from harness.datasets import understood
from harness.spec import budget, case
from harness.spec.budget import Training
from harness.spec.case import Ablation, Entry, Settings
from harness.spec.options import CHANGES
from harness.spec.reader import UsageError
from records import provenance
from records.record import slug

COMMAND = "python -m harness.run"
WORDS = {"path": "clip", "frames": "clip.frames", "size": "clip.size", "stride": "clip.stride"}
LONGEST_NAME = 48  # of a folder named after settings


Cases = tuple[list[Entry], list[Entry], list[str], Path]
"""Of one ablation: all, those that are measured, what sets the call apart in words, and where records lie."""


@dataclass(frozen=True)
class Checked:
    """A call whose every word is checked, as far as that needs no torch, with its cases and how rows are trained."""

    call: Call
    setups: dict[str, Setup | None]
    cases: list[Cases]


def checked(call: Call, writes: bool = True) -> Checked:
    """Warns of more than the machine can do at once. Raises: UsageError."""
    whole = call.metrics is None
    setups = {ablation.name: setup(ablation, call.settings, call.training, whole) for ablation in call.ablations}
    if writes:
        _check_writable(call.out)
    call, usual = settled(call)
    settings, training = call.settings, call.training
    jobs = None if (settings.device or "cpu").startswith("cuda") or training.cluster else training.jobs
    if warning := provenance.crowded(threads=settings.threads, jobs=jobs):
        call.log.print(warning, markup=False, soft_wrap=True)
    return Checked(call, setups, [cases_of(ablation, call, usual) for ablation in call.ablations])


def settled(call: Call) -> tuple[Call, Settings]:
    """The call with what its settings leave open, and the settings of one that sets nothing. Raises: UsageError."""
    settings = call.settings
    threads = 1 if settings.quick else provenance.default_threads()
    settings = replace(settings, digest=_digest(settings.path), threads=settings.threads or threads)
    return replace(call, settings=settings), Settings(quick=settings.quick, threads=threads)


def cases_of(ablation: Ablation, call: Call, usual: Settings) -> Cases:
    entries = case.resolve(ablation, call.settings)
    chosen = [entry for entry in entries if ablation.chosen is None or entry.row.row in ablation.chosen]
    words = [*setting(ablation, entries, call.settings, usual), *ablation.added] if call.apart else []
    folder = folder_of(call.out, ablation.name, call.quick) / folder_name(words, call.settings)
    return entries, chosen, words, folder


def folder_of(out: Path, ablation: str, quick: bool) -> Path:
    return out / "quick" / ablation if quick else out / ablation


def setting(ablation: Ablation, entries: list[Entry], settings: Settings, usual: Settings) -> list[str]:
    """The settings, as words of the command line, without which the cases would be others than the `usual` ones."""
    identifiers, reduced, words = [case.case_id(entry.case) for entry in entries], settings, []
    for name in (f.name for f in fields(Settings) if f.name not in ("quick", "digest")):
        value, default = getattr(settings, name), getattr(usual, name)
        if value == default:
            continue
        without = replace(reduced, **{name: default}, **({"digest": None} if name == "path" else {}))
        if _cases(ablation, without) == identifiers:
            reduced = without
        elif name == "model":
            words += [f"model.{field}={value[field]}".replace(" ", "") for field in value]
        else:
            words.append(f"{WORDS.get(name, name)}={Path(value).name if name == 'path' else str(value).lower()}")
    return words


def _cases(ablation: Ablation, settings: Settings) -> list[str] | None:
    try:
        return [case.case_id(entry.case) for entry in case.resolve(ablation, settings)]
    except UsageError:  # these settings go together only
        return None


def folder_name(words: list[str], settings: Settings) -> str:
    """A folder for settings, told from every other: by its words, and where they say too little by a digest."""
    name = slug(" ".join(words)) if words else ""
    if settings.digest or settings.model or len(name) > LONGEST_NAME:
        digest = hashlib.sha256(" ".join([*words, settings.digest or ""]).encode()).hexdigest()[:6]
        name = f"{name[:LONGEST_NAME].rstrip('-')}-{digest}" if words else ""
    return name


def setup(ablation: Ablation, settings: Settings, training: Training, whole: bool) -> Setup | None:
    """How the rows of an ablation are trained; None for not at all.

    Where the command line names no budget, an ablation that is measured as a `whole` follows its own.
    """
    name = training.accuracy or (ablation.accuracy if whole else None) or budget.OFF
    if name == budget.OFF:
        unsaid = Training(training.accuracy)
        named = [f.name for f in fields(training) if getattr(training, f.name) != getattr(unsaid, f.name)]
        if named:
            word = named[0].replace(CHANGES, ".FIELD")
            raise UsageError(f"{word} is for accuracy, which is off here; add accuracy=quick, or leave it out")
        return None
    made = Setup(
        budget.load(name),
        replace(training, data_changes=understood(training.data or budget.load(name).data, training.data_changes)),
        ablation.name,
        device=settings.device or "cpu",
        dtype=settings.dtype,
        kernel=settings.kernel or "auto",
        threads=max(1, provenance.default_threads() // (training.jobs or provenance.default_threads())),
        quick=settings.quick,
    )
    check(made)
    return made


def metrics_of(ablation: Ablation, chosen: list[str] | None) -> list[str]:
    """The metrics of a run in the registry's order; parameters bring those that learn, where a row freezes the rest."""
    names = ablation.metrics if chosen is None else chosen
    parts = {*ablation.vary.get("trainable", []), *(row.trainable for row in ablation.rows)} - {None, "all"}
    names = [*names, "trainable_params"] if parts and "params" in names else names
    return [name for name in metrics.names() if name in names]


def _digest(clip: str | None) -> str | None:
    """What names a given file by its content: another of the same name is another case. Raises: UsageError."""
    if clip is None:
        return None
    try:
        check_clip(clip)
        return file_digest(clip)
    except (VideoError, OSError) as error:
        raise UsageError(str(error)) from error


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        hint = "choose a folder that you may write, out=FOLDER"
        raise UsageError(f"out={out}: cannot write there ({why}); {hint}") from error
