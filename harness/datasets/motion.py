"""The built-in data sets: what real photographs do in front of others. Rendered on first use.

Classes come in pairs; a clip of the second class of a pair is a clip of the first played backwards. `motion` and
`motion_large` have twelve classes:

    short   move_left / move_right                        an object crosses the frame, and again
    short   rotate_clockwise / rotate_counterclockwise    an object turns on the spot
    short   approach / recede                             an object grows, or shrinks, and again
    short   round_chases_square / square_chases_round     one object runs behind another, in any of four directions
    long    round_square_triangle / triangle_square_round three objects are seen in turn, with empty pictures in between
    long    around_clockwise / around_counterclockwise    an object is seen in turn at three places around the middle

`motion_small` has eight, easier to see: move_left / move_right, move_up / move_down, approach / recede and
around_clockwise / around_counterclockwise, with bright objects before dark backgrounds, which are photographs blurred
until only a gentle gradient of colour is left. The short and the long classes of either are data sets of their own as
well: `motion_short`, `motion_long`, `motion_small_short` and `motion_small_long`.

By construction, two neighbouring pictures decide the short ones (all but those between which an object jumps back to
its first size); in the long ones no window shorter than a sixth of the clip sees more than one event, and one event
says nothing. Photographs are cut, mirrored, recoloured and panned at random, and each belongs to one split only.

What the controls can reach. Each scene is in the test once forwards and once backwards, under two labels, and every
picture is coded by itself, so the two clips hold the same pictures. A rule that sees all of them without their order
gives both clips of a scene one answer: at most 50 % of the test, whatever it learns, and 50 % only if it tells the
pairs apart without fault. A rule that sees one picture is held to 50 % as well, and most of the pairs look alike in
one picture. Guessing gives 8.3 % (12.5 % of eight classes). (A sample of every second picture, counted from the start,
is not quite the same in a clip and its reversal; which of the two it is says nothing, for phases are drawn.)

Measured, top-1 of the test, one seed each. `motion`, before a last small change of its pixels: a 3D convolution network
of 0.2 million parameters, 60 CPU seconds, 16 frames of 32 pixels: 85 %; trained and tested on shuffled frames 42 %, on
the middle frame alone 31 %. `motion_small`, DualFormer as `accuracy=quick` trains it (0.58 million parameters, 4
epochs, about 45 CPU seconds): 70 %; trained and tested on shuffled frames 47 %, on the middle frame alone 32 %
(`python -m harness.run ablation=temporal_controls accuracy=quick seeds=[0]`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness.datasets import DataError, DataSet, Item, register
from harness.motion import store
from harness.motion.scenes import REPERTOIRES


@register("motion")
def motion(split: str, root: Path | None = None, *, cache: str | None = None) -> DataSet:
    """Built in: 12 classes of real photographs in motion, 1 008 training, 240 validation and 360 test clips of 64 x 64.

    Rendered on first use under `cache` (or root; else $ATTENTION_ZOO_DATA; else outputs/data), in about half a minute.
    """
    return _rendered("motion", split, root, cache)


@register("motion_small")
def motion_small(split: str, root: Path | None = None, *, cache: str | None = None) -> DataSet:
    """Built in: 8 classes of bright objects before calm backgrounds, 1 600 training, 240 validation and 400 test clips.

    16 frames of 32 x 32, for models that train in a minute on a CPU. Rendered in about ten seconds.
    """
    return _rendered("motion_small", split, root, cache)


@register("motion_large")
def motion_large(split: str, root: Path | None = None, *, cache: str | None = None) -> DataSet:
    """Built in: as motion, but 6 000 training, 600 validation and 1 200 test clips of 48 frames, 128 x 128."""
    return _rendered("motion_large", split, root, cache)


@register("motion_short")
def motion_short(split: str, root: Path | None = None, *, cache: str | None = None) -> DataSet:
    """Built in: the 8 classes of motion that a few neighbouring pictures decide."""
    return half(_rendered("motion", split, root, cache), "short")


@register("motion_long")
def motion_long(split: str, root: Path | None = None, *, cache: str | None = None) -> DataSet:
    """Built in: the 4 classes of motion that only pictures far apart decide."""
    return half(_rendered("motion", split, root, cache), "long")


@register("motion_small_short")
def motion_small_short(split: str, root: Path | None = None, *, cache: str | None = None) -> DataSet:
    """Built in: the 6 classes of motion_small that a few neighbouring pictures decide."""
    return half(_rendered("motion_small", split, root, cache), "short")


@register("motion_small_long")
def motion_small_long(split: str, root: Path | None = None, *, cache: str | None = None) -> DataSet:
    """Built in: the 2 classes of motion_small that only pictures far apart decide."""
    return half(_rendered("motion_small", split, root, cache), "long")


def half(whole: DataSet, reach: str) -> DataSet:
    """Of a built-in data set the classes that are told apart by what is near in time ("short") or far apart ("long"),
    as a data set of its own, to train on both halves as two sets."""
    ranges = {
        name: pair.range
        for repertoire in REPERTOIRES.values()
        for pair in repertoire.pairs
        for name in (pair.forward, pair.backward)
    }
    kept = [label for label, name in enumerate(whole.classes) if ranges[name] == reach]
    place = {label: number for number, label in enumerate(kept)}
    return replace(
        whole,
        name=f"{whole.name}_{reach}",
        items=tuple(replace(item, label=place[item.label]) for item in whole.items if item.label in place),
        classes=tuple(whole.classes[label] for label in kept),
        mirror={place[label]: place[opposite] for label, opposite in (whole.mirror or {}).items() if label in place},
    )


def _rendered(name: str, split: str, root: Path | None, cache: str | None) -> DataSet:
    if root is not None and cache is not None:
        raise DataError(f"root={root} and cache={cache} both say where {name} is rendered; give one of them")
    version = store.VERSIONS[name]
    manifest = store.ready(version, split, cache or root)
    return listed(store.folder(version, cache or root), manifest)


def listed(root: Path, manifest: dict) -> DataSet:
    """The data set that a manifest of `harness.motion.store` describes; `root` is the folder that the manifest lies in.

    Paths begin with that folder's name, so the data set's digest tells versions and formats apart.
    """
    repertoire = next(candidate for candidate in REPERTOIRES.values() if list(candidate.classes) == manifest["classes"])
    return DataSet(
        manifest["name"],
        manifest["split"],
        root.parent,
        tuple(Item(f"{root.name}/{clip['path']}", clip["label"]) for clip in manifest["clips"]),
        repertoire.classes,
        sided=True,
        mirror=repertoire.mirror,
        source=f"built in, format {manifest['format']}, specification {manifest['digest'][:12]}",
    )
