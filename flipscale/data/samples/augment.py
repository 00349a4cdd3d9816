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


def random_views(
    widths: npt.NDArray[np.int64],
    heights: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.float64],
    augmentation: Augmentation,
) -> list[View]:
    """Return the random resized crops of n images that their (n, DRAWS) uniform numbers choose (paper, A.1).

    Area share uniform in `crop_area`, log aspect uniform in 3/4..4/3, ten attempts, then the largest
    centred crop whose aspect lies in the range.
    """
    low, high = augmentation.crop_area
    attempts = numbers[:, :-1].reshape(-1, _ATTEMPTS, 4)
    areas = (widths * heights)[:, None] * (low + (high - low) * attempts[..., 0])
    log_low, log_high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    aspects = np.exp(log_low + (log_high - log_low) * attempts[..., 1])
    w = np.rint(np.sqrt(areas * aspects)).astype(np.int64)
    h = np.rint(np.sqrt(areas / aspects)).astype(np.int64)
    fits = (w >= 1) & (w <= widths[:, None]) & (h >= 1) & (h <= heights[:, None])
    first = np.arange(len(numbers)), fits.argmax(axis=1)
    w, h = w[first], h[first]
    left = (attempts[..., 2][first] * (widths - w + 1)).astype(np.int64)
    top = (attempts[..., 3][first] * (heights - h + 1)).astype(np.int64)
    boxes = np.stack([left, top, left + w, top + h], axis=1)
    none = ~fits.any(axis=1)
    if none.any():
        boxes[none] = _centred(widths[none], heights[none])
    flips = (numbers[:, -1] < 0.5) & augmentation.flip
    return [View(tuple(box), flip) for box, flip in zip(boxes.tolist(), flips.tolist(), strict=True)]


def _centred(widths: npt.NDArray[np.int64], heights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    aspects = np.clip(widths / heights, *_ASPECT)
    w = np.minimum(widths, np.maximum(1, np.rint(heights * aspects).astype(np.int64)))
    h = np.minimum(heights, np.maximum(1, np.rint(widths / aspects).astype(np.int64)))
    left, top = (widths - w) // 2, (heights - h) // 2
    return np.stack([left, top, left + w, top + h], axis=1)
