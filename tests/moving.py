"""Pictures for tests of decoders: a drifting texture with a ball before it, of any size, no two pictures alike."""

import numpy as np


def moving_scene(frames=80, height=240, width=320):
    """uint8 `t h w 3`."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [127 + 60 * np.sin(0.11 * x + 0.3 * t + k) + 40 * np.sin(0.17 * y + 0.05 * x - 0.2 * t) for k in range(3)]
    picture = np.stack(waves, axis=-1)
    ball = (x - width * (0.2 + 0.6 * t / frames)) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2
    picture[ball] = (230, 120, 40)
    return np.clip(picture, 0, 255).astype(np.uint8)
