"""The built-in data sets: what real photographs do in front of others. Rendered on first use.

Classes come in pairs; a clip of the second class of a pair is a clip of the first played backwards. The scripts of
`harness.motion.scenes` say what happens in each, its `REPERTOIRES` which a data set has. Those of `motion_small` are
easier to see: bright objects before dark backgrounds, which are photographs blurred until only a gentle gradient of
colour is left. The classes of either that neighbouring pictures decide ("short") and those that only pictures far apart
decide ("long") are data sets of their own as well.

By construction, two neighbouring pictures decide the short ones (all but those between which an object jumps back to
its first size); in the long ones no window shorter than a sixth of the clip sees more than one event, and one event
says nothing. Photographs are cut, mirrored, recoloured and panned at random, and each belongs to one split only.

What the controls can reach. Each scene is in the test once forwards and once backwards, under two labels, and every
picture is coded by itself, so the two clips hold the same pictures. A rule that sees all of them without their order
gives both clips of a scene one answer: at most 50 % of the test, whatever it learns, and 50 % only if it tells the
pairs apart without fault. A rule that sees one picture is held to 50 % as well, and most of the pairs look alike in
one picture. Guessing gives 8.3 % (12.5 % of eight classes). (A sample of every second picture, counted from the start,
is not quite the same in a clip and its reversal; which of the two it is says nothing, for phases are drawn.)

`ablation=temporal_controls` measures what models make of it (docs/accuracy.md).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness.datasets import DataError, DataSet, Item, register
from harness.motion import store
from harness.motion.scenes import REPERTOIRES


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


def register_rendered(name: str, what: str, version: str | None = None, reach: str | None = None) -> None:
    """Add a data set that is rendered, or of a `version` the classes of one `reach`; `what` is for the list of all."""
    rendered_as = store.VERSIONS[version or name]

    def rendered(split: str, root: Path | None = None, *, cache: str | None = None) -> DataSet:
        if root is not None and cache is not None:
            raise DataError(
                f"root={root} and cache={cache} both say where {rendered_as.name} is rendered; give one of them"
            )
        manifest = store.ready(rendered_as, split, cache or root)
        whole = listed(store.folder(rendered_as, cache or root), manifest)
        return half(whole, reach) if reach else whole

    rendered.__doc__ = f"Built in: {what}"
    register(name)(rendered)


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


SMALL = "8 classes of bright objects before calm backgrounds, 1 600 training, 240 validation and 400 test clips."
WHOLE = "12 classes of real photographs in motion, 1 008 training, 240 validation and 360 test clips of 64 x 64."
LARGE = "as motion, but 6 000 training, 600 validation and 1 200 test clips of 48 frames, 128 x 128."
register_rendered("motion", WHOLE)
register_rendered("motion_small", SMALL)  # of 16 frames of 32 x 32, for models that train in a minute on a CPU
register_rendered("motion_large", LARGE)
NEAR, FAR = "that a few neighbouring pictures decide.", "that only pictures far apart decide."
register_rendered("motion_short", f"the 8 classes of motion {NEAR}", "motion", "short")
register_rendered("motion_long", f"the 4 classes of motion {FAR}", "motion", "long")
register_rendered("motion_small_short", f"the 6 classes of motion_small {NEAR}", "motion_small", "short")
register_rendered("motion_small_long", f"the 2 classes of motion_small {FAR}", "motion_small", "long")
