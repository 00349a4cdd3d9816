"""Random resized crop and flip, seeded by the sample's position in the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flipscale.config import Augmentation

_ATTEMPTS = 10  # crops that are tried per image
_ASPECT = (3 / 4, 4 / 3)  # width / height of the crop
DRAWS = 4 * _ATTEMPTS + 1
"""Uniform numbers per image: area, aspect, x and y of every attempt, and one for the flip."""


@dataclass(frozen=True)
class View:
    """The view of an image that training uses."""

    box: tuple[int, int, int, int]  # left, top, right, bottom, in pixels
    flip: bool  # mirrored horizontally


def random_views(
    widths: npt.NDArray[np.int64],
    heights: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.float64],
    augmentation: Augmentation,
) -> list[View]:
    """Return random resized crops of n images (released code of FLIP, configs/default.py).

    The area's share is uniform in `crop_area`, and the logarithm of the aspect is uniform in 3/4..4/3. If
    none of ten attempts fits, the crop is the largest centred one whose aspect is in that range.

    Args:
        widths: (n,), in pixels.
        heights: (n,), in pixels.
        numbers: (n, DRAWS), uniform in [0, 1); they determine the views.
        augmentation: The job's augmentation block.
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
    """Return the boxes (n, 4) of the largest centred crops whose aspect is in the range."""
    aspects = np.clip(widths / heights, *_ASPECT)
    w = np.minimum(widths, np.maximum(1, np.rint(heights * aspects).astype(np.int64)))
    h = np.minimum(heights, np.maximum(1, np.rint(widths / aspects).astype(np.int64)))
    left, top = (widths - w) // 2, (heights - h) // 2
    return np.stack([left, top, left + w, top + h], axis=1)
