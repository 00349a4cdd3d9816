"""Shards of pictures with the statistics of photographs: occlusion, shading, texture and grain.

The cost of a photograph in a loader is its entropy, so flat drawings would make a loader look too fast. Dead
leaves (discs and polygons over each other, radii by a power law) give edges at every scale, as occlusion does
in nature. Noise of amplitude 1/f gives texture, a smooth field gives light and shade, and white noise gives
the sensor's grain.
"""

from __future__ import annotations

import io
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

QUALITY = 90  # of the JPEGs
SUBJECTS = ("bird", "house", "boat", "child", "red car", "street market", "mountain lake", "old bicycle")
PLACES = ("in the rain", "at night", "by the sea", "on a wooden table", "in front of a church", "in spring")
_LEAVES = 260
_SMALLEST, _LARGEST = 6, 220  # radii in pixels at 512 pixels


def photograph(seed: int, width: int = 512, height: int = 512) -> Image.Image:
    """Return an RGB picture, different for each seed."""
    random = np.random.default_rng(seed)
    scene = np.asarray(_leaves(random, width, height), dtype=np.float32)
    texture = _fractal(random, width, height, 1.0)[..., None]
    tint = np.stack([_fractal(random, width, height, 1.6) for _ in range(3)], axis=-1)
    light = _fractal(random, width, height, 2.2)[..., None]
    roughness = random.uniform(4.0, 15.0)  # grey levels; low for sky and skin, high for leaves and hair
    grain = random.normal(0.0, 1.5, scene.shape).astype(np.float32)
    pixels = (scene + roughness * texture + 6.0 * tint) * (1.0 + 0.22 * light) + grain
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    """Return a picture as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _leaves(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw discs and polygons over each other, with soft edges."""
    scale = max(width, height) / 512
    large = Image.new("RGB", (2 * width, 2 * height), tuple(random.integers(60, 200, 3).tolist()))
    draw = ImageDraw.Draw(large)

    # Density proportional to radius^-3, as of things seen at all distances.
    share = random.random(_LEAVES)
    radii = scale / np.sqrt(share / _SMALLEST**2 + (1 - share) / _LARGEST**2)
    for radius in np.sort(radii)[::-1] * 2:
        x = random.uniform(0, 2 * width)
        y = random.uniform(0, 2 * height)
        grey = random.uniform(25, 225)
        colour = tuple(np.clip(grey + random.normal(0, 22, 3), 0, 255).astype(int).tolist())
        if random.random() < 0.5:
            flat = radius * random.uniform(0.4, 1.0)
            draw.ellipse((x - radius, y - flat, x + radius, y + flat), fill=colour)
        else:
            angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 8)))
            draw.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles], fill=colour)

    return large.resize((width, height), Image.Resampling.BICUBIC)


def _fractal(
    random: np.random.Generator, width: int, height: int, exponent: float
) -> npt.NDArray[np.float32]:
    """Return a field of amplitude 1 / frequency^exponent, with mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    phases = random.normal(size=(2, *frequency.shape))
    field = np.fft.irfft2((phases[0] + 1j * phases[1]) / frequency**exponent, (height, width))
    return (field / field.std()).astype(np.float32)


def caption(number: int) -> str:
    """Return the caption of a sample."""
    return f"a photo of a {SUBJECTS[number % len(SUBJECTS)]} {PLACES[number // 7 % len(PLACES)]}"


@cache
def picture_file(seed: int, side: int) -> bytes:
    """Return a JPEG file of a square picture, made once per process."""
    return jpeg(photograph(seed, side, side), QUALITY)


def make_shards(root: Path, shards: int, samples: int, side: int) -> str:
    """Write the shards, and return their pattern in brace notation."""
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(
            pool.map(
                make_shard, *zip(*[(root, n, samples, side) for n in range(shards)], strict=True), chunksize=4
            )
        )
    return str(root / f"{{00000..{shards - 1:05d}}}.tar")


def make_shard(root: Path, shard: int, samples: int, side: int) -> None:
    """Write one shard; at most 512 pictures are different, so that many small shards take little time."""
    with tarfile.open(root / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(shard * samples, (shard + 1) * samples):
            picture = picture_file(number % 512, side)
            for extension, data in (("jpg", picture), ("txt", caption(number).encode())):
                info = tarfile.TarInfo(f"{number:09d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
