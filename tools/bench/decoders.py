"""Ways from JPEG bytes to the pixels of a view, timed in turns and compared with an exact decode."""

from __future__ import annotations

import importlib.util
import io
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import cykooz_resizer
import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from photographs import jpeg, photograph
from PIL import Image

from flipscale.config import Augmentation
from flipscale.data.order.lanes import uniforms
from flipscale.data.samples.augment import DRAWS, View, random_views

SIZE = 224
Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
BICUBIC = Image.Resampling.BICUBIC
CATMULL_ROM = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)


def scale_of(view: View) -> int:
    """Return the divisor (8, 4, 2 or 1) at which a decode still has `SIZE` pixels per side of the view."""
    left, top, right, bottom = view.box
    side = min(right - left, bottom - top)
    return next((scale for scale in (8, 4, 2) if side >= scale * SIZE), 1)


def smaller(view: View, scale: float) -> Box:
    """Return the box of a view in an image that was decoded at 1 / scale."""
    left, top, right, bottom = (edge / scale for edge in view.box)
    return left, top, right, bottom


def drafted(data: bytes, scale: int) -> Image.Image:
    """Decode at 1 / scale with Pillow."""
    image = Image.open(io.BytesIO(data))
    if scale > 1:
        image.draft(image.mode, (image.width // scale, image.height // scale))
    return image.convert("RGB")


def turbo(data: bytes, scale: float) -> Pixels:
    """Decode at 1 / scale with simplejpeg."""
    width, height = Image.open(io.BytesIO(data)).size  # the header, which every loader has to read
    sides = math.ceil(height / scale), math.ceil(width / scale)
    return simplejpeg.decode_jpeg(data, "RGB", min_height=sides[0], min_width=sides[1], min_factor=scale)


def by_cykooz(pixels: Pixels, box: Box) -> Pixels:
    """Resize a box of an image with cykooz-resizer."""
    height, width, _ = pixels.shape
    rgb = cykooz_resizer.PixelType.U8x3
    result = cykooz_resizer.ImageData(SIZE, SIZE, rgb)
    crop = cykooz_resizer.CropBox(box[0], box[1], box[2] - box[0], box[3] - box[1])
    options = cykooz_resizer.ResizeOptions(CATMULL_ROM, crop_box=crop)
    source = cykooz_resizer.ImageData(width, height, rgb, pixels.tobytes())
    cykooz_resizer.Resizer().resize(source, result, options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(SIZE, SIZE, 3)


def by_torch(pixels: Pixels, box: Box) -> Pixels:
    """Resize a box with torch, whose vectorised antialiased resizing takes only whole pixels."""
    left, top, right, bottom = (round(edge) for edge in box)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, top:bottom, left:right]
    resized = torch.nn.functional.interpolate(image, (SIZE, SIZE), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def whole_by_pillow(data: bytes, view: View) -> Pixels:
    """Decode the whole image and resize it with Pillow: the exact result."""
    return np.asarray(drafted(data, 1).resize((SIZE, SIZE), BICUBIC, box=view.box))


def draft_by_pillow(data: bytes, view: View) -> Pixels:
    """Decode at a smaller scale and resize with Pillow."""
    scale = scale_of(view)
    return np.asarray(drafted(data, scale).resize((SIZE, SIZE), BICUBIC, box=smaller(view, scale)))


def gap_by_pillow(data: bytes, view: View) -> Pixels:
    """Decode the whole image and resize it with Pillow in two steps."""
    box = smaller(view, 1)
    return np.asarray(drafted(data, 1).resize((SIZE, SIZE), BICUBIC, box=box, reducing_gap=1.0))


def draft_and_cykooz(data: bytes, view: View) -> Pixels:
    """Decode at a smaller scale with Pillow and resize with cykooz-resizer."""
    scale = scale_of(view)
    return by_cykooz(np.asarray(drafted(data, scale)), smaller(view, scale))


def turbo_and_pillow(data: bytes, view: View) -> Pixels:
    """Decode at a smaller scale with simplejpeg and resize with Pillow."""
    scale = scale_of(view)
    image = Image.fromarray(turbo(data, scale))
    return np.asarray(image.resize((SIZE, SIZE), BICUBIC, box=smaller(view, scale)))


def turbo_and_torch(data: bytes, view: View) -> Pixels:
    """Decode at a smaller scale with simplejpeg and resize with torch."""
    scale = scale_of(view)
    return by_torch(turbo(data, scale), smaller(view, scale))


def turbo_and_cykooz(data: bytes, view: View) -> Pixels:
    """Decode at a smaller scale with simplejpeg and resize with cykooz-resizer, as the loader does."""
    scale = scale_of(view)
    return by_cykooz(turbo(data, scale), smaller(view, scale))


def whole_turbo_and_cykooz(data: bytes, view: View) -> Pixels:
    """Decode the whole image with simplejpeg and resize it with cykooz-resizer."""
    return by_cykooz(turbo(data, 1), smaller(view, 1))


def five_eighths_and_cykooz(data: bytes, view: View) -> Pixels:
    """Decode at 5/8, enough for most views of 512 pixels; libjpeg has no vector instructions for it."""
    return by_cykooz(turbo(data, 8 / 5), smaller(view, 8 / 5))


def opencv(data: bytes, view: View) -> Pixels:
    """Decode at a smaller scale and resize with OpenCV."""
    import cv2

    scale = scale_of(view)
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2}
    flag = flags.get(scale, cv2.IMREAD_REDUCED_COLOR_4) | cv2.IMREAD_IGNORE_ORIENTATION
    scale = min(scale, 4)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    left, top, right, bottom = (round(edge) for edge in smaller(view, scale))
    resized = cv2.resize(pixels[top:bottom, left:right], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return resized[..., ::-1]


CANDIDATES: dict[str, Callable[[bytes, View], Pixels]] = {
    "Pillow, whole image (as before)": whole_by_pillow,
    "Pillow, reducing_gap 1": gap_by_pillow,
    "Pillow, draft": draft_by_pillow,
    "Pillow draft, cykooz-resizer": draft_and_cykooz,
    "simplejpeg, Pillow's resize": turbo_and_pillow,
    "simplejpeg, torch's antialiased resize": turbo_and_torch,
    "simplejpeg always at 5/8, cykooz-resizer": five_eighths_and_cykooz,
    "simplejpeg whole, cykooz-resizer": whole_turbo_and_cykooz,
    "simplejpeg scaled, cykooz-resizer (chosen)": turbo_and_cykooz,
}
if importlib.util.find_spec("cv2") is not None:
    CANDIDATES["OpenCV reduced, INTER_AREA"] = opencv


@dataclass(frozen=True)
class Measured:
    """The measurement of one candidate."""

    name: str
    milliseconds: float  # of the processor, per image
    speedup: float  # over the first candidate, in the same round: median
    speedups: tuple[float, float]  # lowest and highest
    psnr: float  # dB, mean over the views
    lowest_psnr: float


def psnr(pixels: np.ndarray, expected: np.ndarray) -> float:
    """Return the PSNR in dB; equal pixels count as 60."""
    error = np.mean((pixels.astype(np.float64) - expected) ** 2)
    return min(60.0, 10 * math.log10(255**2 / max(error, 1e-9)))


def compare(side: int, images: int, rounds: int) -> list[Measured]:
    """Time every candidate over the same views, in turns.

    Args:
        side: Side of the photographs in pixels.
        images: Number of photographs.
        rounds: Number of rounds after a warm-up.
    """
    files = [jpeg(photograph(seed, side, side)) for seed in range(images)]
    sides = np.full(images, side)
    views = random_views(sides, sides, uniforms(0, np.arange(images), DRAWS), Augmentation(flip=False))

    seconds: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for turn in range(rounds + 1):
        for name, candidate in CANDIDATES.items():
            began = time.process_time()
            for data, view in zip(files, views, strict=True):
                candidate(data, view)
            if turn:  # the first warms up
                seconds[name].append((time.process_time() - began) / images)

    expected = [whole_by_pillow(data, view) for data, view in zip(files, views, strict=True)]
    first = seconds[next(iter(CANDIDATES))]

    measured: list[Measured] = []
    for name, candidate in CANDIDATES.items():
        quality = [
            psnr(candidate(data, view), pixels)
            for data, view, pixels in zip(files, views, expected, strict=True)
        ]
        ratios = [before / after for before, after in zip(first, seconds[name], strict=True)]
        measured.append(
            Measured(
                name,
                1000 * statistics.median(seconds[name]),
                statistics.median(ratios),
                (min(ratios), max(ratios)),
                statistics.mean(quality),
                min(quality),
            )
        )
    return measured
