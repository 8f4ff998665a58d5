"""Recipes as data: how each published run was trained and tested, in one YAML file each, and two of our own.

A paper and the code released with it often differ. Such a value is written `{paper: 0.02, code: 0.05}`, and
`load(name, "code")` takes the code's. Where only one of the two states a value, it is written alone (`{code: 64}`) and
the other source borrows it; where neither does, our default stands. Both are listed in `Recipe.assumed`, so that
nothing is invented in silence. A plain value is stated by both, or, in a file with `states: code`, by the code alone.

A file may build on others (`base: _dualformer`; of several the later has the last word); files that begin with an
underscore are such bases and no recipes. `own: true` marks a recipe of this project, where nothing is assumed.

Imports no torch: a slip on a command line is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic.dataclasses import dataclass

from attention_zoo.registry import nearest
from harness.spec import reader
from harness.spec.clip import Augmentation, Mixing
from harness.spec.reader import STRICT, Count, Flag, FromZero, Part, Positive, Share, UsageError, typed
from harness.spec.sampling import Kind, Sampling

FOLDER = Path(__file__).parents[1] / "conf" / "recipe"
Source = Literal["paper", "code"]
SOURCES = get_args(Source)
BORROWED, DEFAULT = "stated by the {other} only", "stated by neither; our default"

Groups = Literal["paper", "code", "plain"]
Schedule = Literal["cosine_per_epoch", "cosine", "linear", "step"]
Grouping = Literal["strided", "neighbours"]
Draw = Literal["proportional", "balanced"]


@dataclass(frozen=True, config=STRICT)
class Optimisation:
    """The optimizer, its groups of parameters and its learning rate over time.

    `groups` (see `harness.training.optimizer`): "paper" decays every parameter; "code" follows the name rules of the
    released codes, with what they really do; "plain" decays no 1-D tensor (norms, biases). `schedule`:
    "cosine_per_epoch" changes once an epoch, at its whole number; "cosine" and "linear" at each step; "step" multiplies
    by `milestone_factor` at each of the `milestones`, which are epochs.
    """

    epochs: Positive = 30.0  # may be fractional
    batch_size: Count = 64  # clips of one optimizer step, over all devices and accumulated micro-batches
    lr: FromZero = 1e-3  # of the classifier; 0 is a control: what a table says of a training that cannot learn
    backbone_lr: FromZero = 1e-4  # of the rest
    groups: Groups = "paper"
    weight_decay: FromZero = 0.02
    betas: tuple[Part, Part] = (0.9, 0.999)
    eps: Positive = 1e-8
    warmup_epochs: FromZero = 2.5  # linear per step, on top of the schedule,
    warmup_start: Share = 0.1  # from this share of the rate
    schedule: Schedule = "cosine"
    end_lr: Share = 0.0  # what the rate falls to at the end, as a share of itself
    clip_norm: Positive | None = None  # the largest norm of the gradient of all parameters; None for no clipping
    milestones: tuple[FromZero, ...] = ()
    milestone_factor: Share = 0.1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Part = 0.9  # of "sgd", as is the next
    nesterov: Flag = True
    muon: FromZero = 0.0  # beside "adamw": Muon steps the backbone's matrices, at so many times `backbone_lr`; 0: not

    def __post_init__(self):
        if self.muon and self.optimizer != "adamw":
            raise ValueError(f"muon {self.muon:g} goes with the optimizer 'adamw', not {self.optimizer!r}; give muon=0")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} are not growing numbers of epochs, such as [11, 14]")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(
                f"milestones {list(self.milestones)} with the schedule {self.schedule!r}; "
                "give milestones with 'step', and with it alone"
            )


@dataclass(frozen=True, config=STRICT)
class Testing:
    """The views of a video in testing: `clips` in time by `crops` in space, from frames of short side `resize`.

    `size` is the side of a crop in pixels, None for that of training.
    """

    __test__ = False  # not a test, whatever pytest thinks of its name

    clips: Count = 4
    crops: Count = 1
    resize: Count = 224
    size: Count | None = None

    def __post_init__(self):
        if self.size is not None and self.size > self.resize:
            raise ValueError(
                f"size {self.size} is above resize {self.resize}; a crop fits into the resized frame: "
                f"resize of {self.size} or more"
            )


@dataclass(frozen=True, config=STRICT)
class TokenLabels:
    """Token labelling: a trained teacher, the annotator, gives every position of the last map its own soft label."""

    teacher: str = "dualformer_base"  # name of the teacher's model
    checkpoint: str | None = None  # file of its weights; None until somebody has one
    weight: Share = 0.5  # of the loss of the pooled scores; the positions' loss weighs 1 - weight
    top_k: Count = 5  # a position's teacher scores below the k-th largest are set to 0 before the softmax
    dropout: Part = 0.5  # of the student's head over positions
    grouping: Grouping = "neighbours"  # time steps of a longer teacher map averaged, see `token_labels.reconciled`


@dataclass(frozen=True, config=STRICT)
class OfSet:
    """What is otherwise for one of several data sets; None as the recipe says for all."""

    weight: FromZero = 1.0  # of its loss
    copies: Count = 1  # how often the set is in an epoch, where clips are drawn in proportion
    flip: Share | None = None  # chance of a mirrored clip; a set where left and right matter has none in any case
    sampling: Kind | None = None  # how frames are chosen, as is the next
    stride: Count | None = None
    clips: Count | None = None  # views in testing, as is the next
    crops: Count | None = None


@dataclass(frozen=True, config=STRICT)
class ManySets:
    """Training on several data sets at once, see `harness.training.many_sets`. Defaults are those of the released code.

    `draw`: "proportional" takes each clip of an epoch once, "balanced" as many of each set in each batch.
    """

    draw: Draw = "proportional"
    hidden: Count = 2048  # width between the two linear maps of each set's classifier
    expander: Count = 4096  # the same of the expander, 2048 in the supplement
    dropout: Part = 0.5  # of the classifiers
    projections: Flag = True  # whether scores of each set are projected onto the classes of each other
    projection_weight: FromZero = 1.0  # of the mean loss of the projections onto a clip's set
    informative: FromZero = 0.1  # weight of the informative loss; 0 leaves it out
    std_weight: FromZero = 25.0  # of its two terms, as is the next
    cov_weight: FromZero = 1.0
    sets: dict[str, OfSet] = field(default_factory=dict)  # what is otherwise for a set, by its name

    def of(self, name: str) -> OfSet:
        return self.sets.get(name, OfSet())


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """Everything that decides how a model is trained and tested, but not on which machine.

    `linear_maps` says how random linear maps start: as "published" (normal, deviation 0.02, for widths of hundreds), or
    "fan_in" (one over the root of the inputs), without which models of a quarter of the width learn little for epochs:
    their branches start at almost nothing. `differs` holds {"paper": value, "code": value} by dotted path, where both
    state one and they differ, `assumed` a reason for each value that the chosen source does not state.
    """

    name: str
    source: str = ""  # where the values come from, in words
    recipe_source: Literal["paper", "code", "own"] = "own"  # whose values these are; "own": of this project
    model: str | None = None  # what was trained, with its changes; None where we do not have the model
    model_changes: dict[str, Any] = field(default_factory=dict)
    data: str | None = None  # name of the data set
    sampling: Sampling = field(default_factory=Sampling)
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixing: Mixing = field(default_factory=Mixing)
    optimisation: Optimisation = field(default_factory=Optimisation)
    testing: Testing = field(default_factory=Testing)
    drop_path: Part | None = None  # None leaves the model's own, as of the next
    dropout: Part | None = None
    initial: str | None = None  # what training starts from, in words
    linear_maps: Literal["published", "fan_in"] = "published"
    token_labels: TokenLabels | None = None  # None for training without them
    many_sets: ManySets | None = None  # None: of one data set, or of several with what `ManySets` says by itself
    notes: tuple[str, ...] = ()  # what the fields cannot say
    differs: dict[str, Any] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; `from_dict` makes an equal recipe of them."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Raises UsageError for an unknown field, with the nearest one, and for a value that is none."""
        if not isinstance(values, Mapping) or "name" not in values:
            raise UsageError(f"a recipe is a mapping with at least a name, not {values!r}")
        return typed(cls, dict(values), f"recipe {values['name']}")

    def of_set(self, name: str) -> Recipe:
        """What holds for one of several data sets."""
        if self.many_sets is None:
            return self
        overrides = self.many_sets.of(name)

        def replaced(section: Any, **values: Any) -> Any:
            return replace(section, **{key: value for key, value in values.items() if value is not None})

        return replace(
            self,
            sampling=replaced(self.sampling, kind=overrides.sampling, stride=overrides.stride),
            augmentation=replaced(self.augmentation, flip=overrides.flip),
            testing=replaced(self.testing, clips=overrides.clips, crops=overrides.crops),
        )

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy in which the values at dotted paths are others: `{"optimisation.lr": 3e-4, "token_labels": None}`.

        A changed value is no longer an assumed one. `token_labels.top_k` switches token labels on where there are none.

        Raises:
            UsageError: a path leads nowhere (the nearest is given), or a value is impossible.
        """
        state, assumed = self.to_dict(), dict(self.assumed)
        for path, value in changes.items():
            none = value in ("none", "None") and path.partition(".")[0] not in FREE  # as command lines write it
            _assign(state, path, None if none else _plain(value))
            assumed = {key: why for key, why in assumed.items() if key != path and not key.startswith(f"{path}.")}
        return Recipe.from_dict(state | {"assumed": assumed})


SECTIONS = {
    "sampling": Sampling,
    "augmentation": Augmentation,
    "mixing": Mixing,
    "optimisation": Optimisation,
    "testing": Testing,
    "token_labels": TokenLabels,
    "many_sets": ManySets,
}
CLASSES = {400: "kinetics400", 600: "kinetics600", 700: "kinetics700", 174: "something_something_v2"}
SWITCHED = ("token_labels", "many_sets")  # sections that a recipe may be without
STATED = ("drop_path", "dropout", "initial")  # with the values of the sections: what a source states
FREE = ("model_changes", "differs", "assumed")  # mappings whose keys are no fields
WRITTEN = tuple(f.name for f in fields(Recipe) if f.name not in ("name", "recipe_source", "differs"))


def names() -> tuple[str, ...]:
    """The recipes that `load` knows."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("_")))


def load(name: str, recipe_source: str = "paper") -> Recipe:
    """The recipe of that name, with the values of the paper or of the released code.

    A recipe of this project is the same under both.

    Raises:
        UsageError: an unknown name or source, with the nearest one; or a file that is wrong.
    """
    if recipe_source not in SOURCES:
        raise UsageError(f"unknown recipe_source {recipe_source!r}; {nearest(str(recipe_source), SOURCES)}")
    if name not in names():
        raise UsageError(f"unknown recipe {name!r}; {nearest(str(name), names())}")
    content = _composed(name)
    own = content.pop("own", False)
    values: dict[str, Any] = {"name": name, "recipe_source": "own" if own else recipe_source}
    differs: dict[str, Any] = {}
    assumed: dict[str, str] = {}

    def chosen(path: str, value: Any) -> Any:
        if not _is_choice(value):
            return value
        if len(value) == 2 and value["paper"] != value["code"]:
            differs[path] = dict(value)
        if recipe_source not in value:
            (borrowed,) = value
            assumed[path] = BORROWED.format(other=borrowed)
            return value[borrowed]
        return value[recipe_source]

    for key, value in content.items():
        value = chosen(key, value)
        if key in SECTIONS and isinstance(value, Mapping):
            value = {inner: chosen(f"{key}.{inner}", entry) for inner, entry in value.items()}
        values[key] = value
    if not own:
        assumed |= dict.fromkeys(_unstated(values), DEFAULT)
    values |= {"differs": differs, "assumed": assumed | values.get("assumed", {})}
    return Recipe.from_dict(values)


def published(model: str, data: str | None, classes: int, recipe_source: str = "paper") -> Recipe | None:
    """The recipe of the authors' weights of a model: where frames, views, mean and deviation of their tests stand.

    Of the data set, where it has one; else of the data set with so many classes, in the order of the recipes' names.
    """
    answered = CLASSES.get(classes)
    for wanted in filter(None, [data, answered] if data != answered else [data]):
        for name in names():
            written = _composed(name)
            of_sets = (written.get("many_sets") or {}).get("sets") or {}
            if wanted in (written.get("data"), *of_sets) and _of_model(written, recipe_source) == model:
                return load(name, recipe_source)
    return None


def _of_model(written: Mapping[str, Any], recipe_source: str) -> str | None:
    model = written.get("model")
    return model.get(recipe_source) if _is_choice(model) else model


def _is_choice(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and set(value) <= set(SOURCES)


def _unstated(values: Mapping[str, Any]) -> list[str]:
    """The paths of what a published recipe leaves to our defaults, where that means something for its run."""
    sections = {name: values.get(name) or {} for name in SECTIONS}
    optimisation, mixing = sections["optimisation"], sections["mixing"]
    silent = {
        "testing.size", "token_labels.checkpoint", "augmentation.mirror", "augmentation.antialias", "optimisation.muon",
        "many_sets.sets",
    }  # fmt: skip
    if optimisation.get("schedule") == "step":
        silent |= {"optimisation.end_lr"}
    else:
        silent |= {"optimisation.milestones", "optimisation.milestone_factor"}
    if optimisation.get("optimizer") == "sgd":
        silent |= {"optimisation.betas", "optimisation.eps"}
    else:
        silent |= {"optimisation.momentum", "optimisation.nesterov"}
    if optimisation.get("warmup_epochs") == 0:
        silent |= {"optimisation.warmup_start"}
    if not mixing.get("mixup") and not mixing.get("cutmix"):
        silent |= {"mixing.probability", "mixing.switch"}
    if sections["augmentation"].get("crop", "random_resized") != "random_resized":
        silent |= {"augmentation.area", "augmentation.aspect"}
    used = {name: kind for name, kind in SECTIONS.items() if name not in SWITCHED or sections[name]}
    paths = [f"{name}.{f.name}" for name, kind in used.items() for f in fields(kind) if f.name not in sections[name]]
    paths += [name for name in STATED if name not in values]
    return [path for path in paths if path not in silent]


def _composed(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a file and the files that it builds on say; the file itself has the last word, field by field."""
    content = _read(name)
    bases = content.pop("base", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        if base in (name, *above) or not (FOLDER / f"{base}.yaml").is_file():
            candidates = {path.stem for path in FOLDER.glob("*.yaml")} - {name, *above}
            raise UsageError(f"recipe {name}: base {base!r} is no other recipe file; {nearest(str(base), candidates)}")
        _merge(merged, _composed(base, (*above, name)))
    _merge(merged, content)
    return merged


def _merge(into: dict[str, Any], content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        base = into.get(key)
        if key == "notes":
            into[key] = [*(base or []), *value]
        elif isinstance(value, Mapping) and isinstance(base, Mapping) and not _is_choice(value):
            into[key] = {**base, **value}
        else:
            into[key] = value


def _read(name: str) -> dict[str, Any]:
    """One file, its fields known, and each of its values with who states it."""
    path = FOLDER / f"{name}.yaml"
    content = dict(_parsed(path))  # a copy
    allowed = {*WRITTEN, "base", "own", "states"}
    for key in content:
        if key not in allowed:
            raise UsageError(f"{path.name}: a recipe has no field {key!r}; {nearest(str(key), allowed)}")
    states = content.pop("states", None)
    if states not in (None, *SOURCES):
        raise UsageError(f"{path.name}: states {states!r} is unknown; {nearest(str(states), SOURCES)}")

    def attributed(value: Any) -> Any:
        return value if states is None or _is_choice(value) else {states: value}

    for key, section in SECTIONS.items():
        if not isinstance(content.get(key), Mapping):
            continue
        inside = {f.name for f in fields(section)}
        for inner in content[key]:
            if inner not in inside:
                raise UsageError(f"{path.name}: {key} has no field {inner!r}; {nearest(str(inner), inside)}")
        content[key] = {inner: attributed(value) for inner, value in content[key].items()}
    return content | {key: attributed(content[key]) for key in STATED if key in content}


_parsed = cache(reader.read)  # a file builds on others that many share


def _assign(state: dict[str, Any], path: str, value: Any) -> None:
    head, _, rest = path.partition(".")
    if head not in state or head == "name":
        allowed = [name for name in state if name != "name"]
        raise UsageError(f"a recipe has no field {head!r} (path {path!r}); {nearest(head, allowed)}")
    *outer, last = [head, rest] if head in FREE and rest else path.split(".")
    section = state
    for key in outer:
        if section.get(key) is None and key in SWITCHED:
            section[key] = {}
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UsageError(f"the path {path!r} goes on after {key!r}, which is the single value {section!r}")
    section[last] = value


def _plain(value: Any) -> Any:
    """The same value of JSON's types."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value
