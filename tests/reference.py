"""Slow and obvious truths that the fast code is held against; numpy only.

N instances, L locations, C classes, H x W pixels of the frame, h x w of the stride-8 grid.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def resize(image: NDArray[np.uint8], new_height: int, new_width: int) -> NDArray[np.float64]:
    """Sample bilinearly at half-pixel centres with clamped borders, in float64, unrounded."""
    image = image[:, :, None] if image.ndim == 2 else image
    height, width, channels = image.shape
    out = np.zeros((new_height, new_width, channels))
    for y in range(new_height):
        for x in range(new_width):
            u = min(max((x + 0.5) * width / new_width - 0.5, 0), width - 1)
            v = min(max((y + 0.5) * height / new_height - 0.5, 0), height - 1)
            j, i = math.floor(u), math.floor(v)
            j2, i2 = min(j + 1, width - 1), min(i + 1, height - 1)
            fx, fy = u - j, v - i
            out[y, x] = (
                image[i, j] * (1 - fx) * (1 - fy)
                + image[i, j2] * fx * (1 - fy)
                + image[i2, j] * (1 - fx) * fy
                + image[i2, j2] * fx * fy
            )
    return out
