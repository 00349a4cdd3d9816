"""Random resized crop and flip, seeded by the sample's position in the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flipscale.config import Augmentation

_ATTEMPTS = 10
_ASPECT = (3 / 4, 4 / 3)  # width / height of the crop
DRAWS = 4 * _ATTEMPTS + 1  # uniform numbers that one image takes: area, aspect, x, y per attempt; flip


@dataclass(frozen=True)
class View:
    """What training shows of an image: the box (left, top, right, bottom) in pixels, and whether flipped."""

    box: tuple[int, int, int, int]
    flip: bool


def random_view(
    width: int, height: int, numbers: npt.NDArray[np.float64], augmentation: Augmentation
) -> View:
    """Return the random resized crop that DRAWS uniform numbers choose (paper, A.1).

    Area share uniform in `crop_area`, log aspect uniform in 3/4..4/3, ten attempts, then the largest
    centred crop whose aspect lies in the range.
    """
    low, high = augmentation.crop_area
    attempts = numbers[:-1].reshape(_ATTEMPTS, 4)
    areas = width * height * (low + (high - low) * attempts[:, 0])
    log_low, log_high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    aspects = np.exp(log_low + (log_high - log_low) * attempts[:, 1])
    widths = np.rint(np.sqrt(areas * aspects)).astype(int)
    heights = np.rint(np.sqrt(areas / aspects)).astype(int)
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    flip = augmentation.flip and bool(numbers[-1] < 0.5)
    if not fits.any():
        return View(_centred(width, height), flip)
    first = int(np.argmax(fits))
    w, h = int(widths[first]), int(heights[first])
    left = int(attempts[first, 2] * (width - w + 1))
    top = int(attempts[first, 3] * (height - h + 1))
    return View((left, top, left + w, top + h), flip)


def _centred(width: int, height: int) -> tuple[int, int, int, int]:
    aspect = min(max(width / height, _ASPECT[0]), _ASPECT[1])
    w = min(width, max(1, round(height * aspect)))
    h = min(height, max(1, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)
