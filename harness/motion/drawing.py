"""From a scene to pictures. Plain arithmetic on whole numbers and IEEE operations that round alike everywhere (no sine,
no power, no sum in floating point), so every machine draws the same pixels.
"""

from __future__ import annotations

import math

import numpy as np

from harness.motion.photographs import shrunk
from harness.motion.scenes import Object, Scene, sine_and_cosine

RIM = 0.24  # width of an object's plain rim, of its radius


def pictures(scene: Scene, size: int) -> np.ndarray:
    """The pictures of a scene in order, uint8 `t size size 3`."""
    drawn = np.stack([scene.background[top : top + size, left : left + size] for top, left in scene.pan.tolist()])
    for sprite in scene.objects:
        draw(sprite, drawn)
    return drawn


def draw(sprite: Object, drawn: np.ndarray) -> None:
    """Draw one object over the pictures `t h w 3`, in place; what leaves the frame on one side enters on the other."""
    now, size = np.flatnonzero(sprite.seen), drawn.shape[1]
    if not len(now):
        return
    x, y, radius = (part[now] * size for part in (sprite.x, sprite.y, sprite.radius))
    sine, cosine = sine_and_cosine(sprite.angle[now])
    half = min(math.ceil(1.25 * float(radius.max())) + 1, size // 2)  # corners reach further than the radius
    reach = np.arange(-half, half if 2 * half == size else half + 1)
    rows, columns = (np.floor(middle).astype(np.int64)[:, None] + reach for middle in (y, x))
    down = ((rows + 0.5 - y[:, None]) / radius[:, None]).astype(np.float32)[:, :, None]
    right = ((columns + 0.5 - x[:, None]) / radius[:, None]).astype(np.float32)[:, None, :]
    sine, cosine = (part.astype(np.float32)[:, None, None] for part in (sine, cosine))
    u, v = cosine * right + sine * down, cosine * down - sine * right  # in radii, turned with the object
    inside = _depth(sprite.shape, u, v)
    pixels = radius.astype(np.float32)[:, None, None]
    covers = np.clip(inside * pixels + np.float32(0.5), 0, 1)[..., None]
    plain = np.clip((np.float32(RIM) - inside) * pixels + np.float32(0.5), 0, 1)[..., None]
    colour = _sampled(sprite.texture, u, v, radius)
    colour += (np.float32(sprite.rim) - colour) * plain
    place = now[:, None, None], rows[:, :, None] % size, columns[:, None, :] % size
    below = drawn[place].astype(np.float32)
    drawn[place] = (below + (colour - below) * covers + np.float32(0.5)).astype(np.uint8)


def _depth(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How deep a point lies inside of a shape, in radii; negative outside."""
    if shape == "round":
        return np.float32(1) - np.sqrt(u * u + v * v)
    if shape == "square":
        return np.float32(0.88) - np.maximum(abs(u), abs(v))
    if shape == "bar":
        return np.minimum(np.float32(1) - abs(u), np.float32(0.42) - abs(v))
    # An equilateral triangle with a corner at the top: three half planes at the same distance from the middle.
    slope = np.float32(0.8660254)
    return np.float32(0.6) - np.maximum(v, slope * abs(u) - np.float32(0.5) * v)


def _sampled(texture: np.ndarray, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The texture's colours at points in radii, float32 `t h w 3`; from a smaller texture where the object is small."""
    result = np.empty((*u.shape, 3), np.float32)
    side = len(texture)
    halvings = (2 * radius * 1.4 < side).astype(int) + (2 * radius * 2.8 < side)
    for level in np.unique(halvings):
        at_level = halvings == level
        small = shrunk(texture, side >> level, side >> level) if level else texture
        result[at_level] = _bilinear(small, u[at_level], v[at_level])
    return result


def _bilinear(texture: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    side, texture = len(texture), texture.astype(np.float32)
    place = [np.clip((part + 1) * np.float32(side / 2) - np.float32(0.5), 0, side - 1) for part in (v, u)]
    first = [np.minimum(part.astype(np.int64), side - 2) for part in place]
    low, left = first
    down, right = ((p - f).astype(np.float32)[..., None] for p, f in zip(place, first, strict=True))
    top = texture[low, left] + (texture[low, left + 1] - texture[low, left]) * right
    bottom = texture[low + 1, left] + (texture[low + 1, left + 1] - texture[low + 1, left]) * right
    return top + (bottom - top) * down
