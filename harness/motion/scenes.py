"""What happens in each class: pairs of classes, the second of each pair being the first played backwards.

A scene is drawn for a pair, not for a class: the clip of the pair's second class shows the very same pictures in
reverse order. So two classes of a pair have the same pictures, and no rule that looks at one picture, or at all of them
without their order, gets more than every second clip right. Within a scene everything is periodic with a drawn phase
(positions wrap around the frame, sizes and events start over), so a picture does not tell its place in time either:
when something is seen says nothing about the class, only what is seen before and after it does.

Lengths are in widths of the frame, times in lengths of the clip, angles in turns (clockwise as seen, for `y` points
down).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from harness.motion.photographs import PHOTOGRAPHS, chosen, cut, stretched, uniform

SHAPES = ("round", "square", "triangle")
RIMS = {"round": (255, 215, 0), "square": (25, 80, 255), "triangle": (235, 25, 60)}  # so a shape is known from afar
TURNING = ("square", "triangle", "bar")  # shapes of a single object: each shows how it is turned
RADIUS = (0.16, 0.34)  # of one object, half its width; sizes are even on a logarithmic scale between the two
LARGE = (0.16, 0.24)  # the same for what glides
INSIDE = (0.3, 0.7)  # where the centre of an object lies, along the axes that it does not move on
DARK, BRIGHT = (50, 95), (160, 205)  # mean grey of backgrounds and objects: always one of each
CALM_PIXELS = 3  # colours a side that are left of a calm background
EVENT = 0.2  # for how long an event of the long-range classes is seen; a third of the clip lies between two starts
FINE = 1 << 20  # results of sine, cosine and exponential are rounded to this: they differ by machine in the last digit


@dataclass(frozen=True)
class Object:
    """One thing of a scene: its appearance and, per picture, where and how large it is, how turned, whether seen."""

    shape: str
    texture: np.ndarray  # uint8, "s s 3"
    rim: tuple[int, int, int]  # colour of its border, RGB; white or black, but where the order of shapes is the class
    x: np.ndarray  # centre in widths of the frame, "t"; drawn wrapped around
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    seen: np.ndarray  # bool


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn, and which photographs it shows. Later objects cover earlier ones."""

    background: np.ndarray  # uint8, "s s 3", larger than the frame by what it may pan on each side
    pan: np.ndarray  # whole pixels by which the frame is shifted over the background, "t 2" (down, right)
    objects: tuple[Object, ...]
    photographs: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two classes that are each other's time reversal. `script(random, frames)` gives the motions of its objects."""

    forward: str
    backward: str
    range: str  # "short": any few neighbouring frames decide; "long": only frames far apart do
    mirrored: bool  # a clip seen in a mirror belongs to the other class of the pair
    script: Callable[[np.random.Generator, int], list[dict]]


@dataclass(frozen=True)
class Repertoire:
    """The pairs of classes of a data set, and what all of its scenes have in common.

    Args:
        calm: bright objects before a dark background, blurred until `CALM_PIXELS` colours a side are left, which run
            into each other.
    """

    pairs: tuple[Pair, ...]
    calm: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(name for pair in self.pairs for name in (pair.forward, pair.backward))

    @property
    def mirror(self) -> dict[int, int]:
        """The class of a clip in a mirror: the partner where the direction is sideways or a turn, else the same."""
        return {label: label ^ 1 if self.pairs[label // 2].mirrored else label for label in range(2 * len(self.pairs))}


def scene(pair: Pair, split: str, random: np.random.Generator, size: int, frames: int, calm: bool = False) -> Scene:
    """One scene of a pair of classes, for square pictures of `size` pixels. All that is drawn comes from `random`."""
    names = PHOTOGRAPHS[split]
    behind = chosen(random, names)
    margin = max(1, round(0.03 * size))  # of the background around the frame: the most that it pans either way
    side = 4 * max(2, round(2 * RADIUS[1] * size / 4))  # of a texture: in fours, so that it can be halved twice
    dark = calm or random.random() < 0.5
    levels = (DARK, BRIGHT) if dark else (BRIGHT, DARK)
    if calm:
        few = cut(random, behind, CALM_PIXELS, (0.4, 0.9), levels[0], deviation=12)
        background = stretched(few, size + 2 * margin)
    else:
        background = cut(random, behind, size + 2 * margin, (0.4, 0.9), levels[0], deviation=20)
    direction, speed = random.random(), uniform(random, 0, 2 * margin)
    step = (speed * _sine(direction), speed * _cosine(direction))
    pan = np.stack([np.floor(margin + part * around_middle(frames) + 0.5).astype(np.int64) for part in step], axis=1)
    objects, photographs = [], [behind]
    for motion in pair.script(random, frames):
        name = chosen(random, [candidate for candidate in names if candidate != behind])
        photographs.append(name)
        texture = cut(random, name, side, (0.2, 0.5), levels[1], deviation=40, quarters=True)
        plain = {"rim": (250,) * 3 if dark else (5,) * 3, "seen": np.ones(frames, bool)}
        objects.append(Object(texture=texture, **(plain | motion)))
    return Scene(background, pan, tuple(objects), tuple(dict.fromkeys(photographs)))


def time_of(frames: int) -> np.ndarray:
    """0 at the first picture, 1 one picture after the last."""
    return np.arange(frames) / frames


def around_middle(frames: int) -> np.ndarray:
    """The time from the middle of the clip: the same spread early and late, for what does not wrap around."""
    return (np.arange(frames) - (frames - 1) / 2) / frames


def _still(random: np.random.Generator, frames: int) -> dict:
    """An object at rest with drawn shape, place, size and angle; a script overwrites what moves."""
    low, high = (math.log(limit) for limit in RADIUS)
    radius = _rounded(math.exp(uniform(random, low, high)))
    x, y, angle = (np.full(frames, at) for at in (uniform(random, *INSIDE), uniform(random, *INSIDE), random.random()))
    return {"x": x, "y": y, "angle": angle, "shape": chosen(random, TURNING), "radius": np.full(frames, radius)}


def move(random: np.random.Generator, frames: int) -> list[dict]:
    """An object crosses the frame to the left, leaves it and comes in again on the right."""
    motion = _still(random, frames)
    motion["x"] = random.random() - uniform(random, 0.9, 1.5) * time_of(frames)
    motion["y"] = motion["y"] + uniform(random, -0.1, 0.1) * around_middle(frames)
    return [motion]


def glide(axis: str, random: np.random.Generator, frames: int) -> list[dict]:
    """A large object crosses the frame along an axis, to the left or up, leaves it and comes in on the other side."""
    motion = _still(random, frames)
    motion["radius"] = np.full(frames, uniform(random, *LARGE))
    motion[axis] = random.random() - uniform(random, 0.75, 1.25) * time_of(frames)
    return [motion]


def rotate(random: np.random.Generator, frames: int) -> list[dict]:
    """An object turns clockwise on the spot."""
    motion = _still(random, frames)
    motion["angle"] = motion["angle"] + uniform(random, 0.55, 0.95) * time_of(frames)
    return [motion]


def approach(random: np.random.Generator, frames: int) -> list[dict]:
    """An object grows from small to large, and again."""
    motion = _still(random, frames)
    phase = random.random() + uniform(random, 1.1, 1.7) * time_of(frames)
    low, high = (math.log(limit) for limit in RADIUS)
    motion["radius"] = np.array([_rounded(math.exp(low + (high - low) * (turn % 1))) for turn in phase.tolist()])
    return [motion]


def chase(random: np.random.Generator, frames: int) -> list[dict]:
    """A square object runs ahead of a round one, up, down, left or right."""
    radius, along, across = uniform(random, 0.13, 0.16), random.random(), uniform(random, *INSIDE)
    gap = 2 * radius + uniform(random, 0.01, 0.05)
    way, sign = chosen(random, (("x", "y"), ("y", "x"))), chosen(random, (1, -1))
    run = along + sign * uniform(random, 0.9, 1.5) * time_of(frames)
    motions = []
    for shape, lead in (("square", gap / 2), ("round", -gap / 2)):
        motion = {**_still(random, frames), "shape": shape, "rim": RIMS[shape], "radius": np.full(frames, radius)}
        motion[way[0]], motion[way[1]] = run + sign * lead, np.full(frames, across)
        motion["angle"] = np.full(frames, uniform(random, -0.04, 0.04))
        motions.append(motion)
    return motions if random.random() < 0.5 else motions[::-1]


def events(random: np.random.Generator, frames: int) -> list[dict]:
    """Three objects are seen one after the other in the same place: round, square, triangle, round again ..."""
    phase, place, radius = int(random.random() * frames), _still(random, frames), uniform(random, 0.24, 0.32)
    common = {"x": place["x"], "y": place["y"], "radius": np.full(frames, radius)}
    motions = []
    for number, shape in enumerate(SHAPES):
        seen = _thirds(frames, phase, number)
        motions.append({**_still(random, frames), **common, "shape": shape, "rim": RIMS[shape], "seen": seen})
    return motions


def places(random: np.random.Generator, frames: int) -> list[dict]:
    """One object is seen at three places in turn, clockwise around the middle, and nowhere in between."""
    phase, start, reach = int(random.random() * frames), random.random(), uniform(random, 0.26, 0.3)
    motion = _still(random, frames)
    motion["radius"] = np.full(frames, uniform(random, 0.16, 0.2))
    middle = uniform(random, 0.46, 0.54), uniform(random, 0.46, 0.54)
    x, y = np.zeros(frames), np.zeros(frames)
    seen = np.zeros(frames, bool)
    for number in range(3):
        now = _thirds(frames, phase, number)
        x[now] = middle[0] + reach * _cosine(start + number / 3)
        y[now] = middle[1] + reach * _sine(start + number / 3)
        seen |= now
    return [{**motion, "x": x, "y": y, "seen": seen}]


def _thirds(frames: int, phase: int, number: int) -> np.ndarray:
    """Whether the event `number` of three is seen in each picture: once per clip, for EVENT of it."""
    since = (np.arange(frames) + phase - number * frames // 3) % frames
    return since < max(1, round(EVENT * frames))


def _rounded(value: float) -> float:
    return round(value * FINE) / FINE


def _sine(turns: float) -> float:
    return _rounded(math.sin(2 * math.pi * turns))


def _cosine(turns: float) -> float:
    return _rounded(math.cos(2 * math.pi * turns))


def sine_and_cosine(turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both of each angle, rounded to what every machine agrees on."""
    return np.array([_sine(turn) for turn in turns.tolist()]), np.array([_cosine(turn) for turn in turns.tolist()])


_APPROACH = Pair("approach", "recede", "short", False, approach)
_AROUND = Pair("around_clockwise", "around_counterclockwise", "long", True, places)

REPERTOIRES = {
    "twelve": Repertoire(
        (
            Pair("move_left", "move_right", "short", True, move),
            Pair("rotate_clockwise", "rotate_counterclockwise", "short", True, rotate),
            _APPROACH,
            Pair("round_chases_square", "square_chases_round", "short", False, chase),
            Pair("round_square_triangle", "triangle_square_round", "long", False, events),
            _AROUND,
        )
    ),
    "eight": Repertoire(
        (
            Pair("move_left", "move_right", "short", True, partial(glide, "x")),
            Pair("move_up", "move_down", "short", False, partial(glide, "y")),
            _APPROACH,
            _AROUND,
        ),
        calm=True,
    ),
}
