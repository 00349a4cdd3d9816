"""Scaled decoding by every library: the views of an exact decode, and the same files counted as bad."""

from __future__ import annotations

import io
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from support.shards import encoded, picture

from flipscale.config import Augmentation
from flipscale.data.order.lanes import uniforms
from flipscale.data.quarantine import BadSample
from flipscale.data.samples import decode
from flipscale.data.samples.augment import DRAWS, View, random_views
from flipscale.data.samples.decode import open_image, render

LIMIT = 10**8  # pixels
LIBRARIES = {
    "all": (),
    "no simplejpeg": ("simplejpeg",),
    "no cykooz_resizer": ("cykooz_resizer",),
    "only Pillow": ("simplejpeg", "cykooz_resizer"),
}


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch) -> str:
    """The libraries that decode; the others are hidden."""
    for missing in LIBRARIES[request.param]:
        monkeypatch.setattr(decode, missing, None)
    return request.param


def scene(seed: int, width: int, height: int) -> Image.Image:
    """Return an image with detail down to two pixels; fine detail is weak, as in a photograph."""
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    cells = 2
    while cells <= max(width, height) / 2:
        coarse = random.integers(0, 256, (cells, cells, 1), dtype=np.uint8).repeat(3, axis=2)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(layer) - 127.5) * 1.2 * cells**-0.5
        cells *= 2
    tint = np.asarray(picture(seed, width, height))
    pixels += (tint - 127.5) / 4
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    return exif


JPEGS = {
    "photograph": lambda: jpeg(scene(0, 512, 512)),
    "real photograph": lambda: jpeg(Image.fromarray(load_sample_image("china.jpg"))),
    "grey": lambda: jpeg(scene(1, 512, 384).convert("L")),
    "cmyk": lambda: jpeg(scene(2, 400, 512).convert("CMYK")),
    "progressive": lambda: jpeg(scene(3, 512, 512), progressive=True),
    "whole chroma": lambda: jpeg(scene(4, 512, 512), subsampling=0),
    "odd sides": lambda: jpeg(scene(5, 509, 397)),
    "restart markers": lambda: jpeg(scene(6, 512, 512), restart_marker_rows=1),
    "orientation": lambda: jpeg(scene(7, 512, 300), exif=turned()),
    "tiny": lambda: jpeg(scene(8, 17, 9)),
    "huge": lambda: jpeg(scene(9, 1000, 1500)),
}


@cache
def jpeg_of(kind: str) -> bytes:
    return JPEGS[kind]()


def views_of(width: int, height: int, count: int) -> list[View]:
    numbers = uniforms(3, np.arange(count), DRAWS)
    return random_views(np.full(count, width), np.full(count, height), numbers, Augmentation())


@cache
def whole(data: bytes) -> Image.Image:
    """Return every pixel, decoded by Pillow."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def exact(data: bytes, view: View, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """Return the view of the whole image, rendered by Pillow."""
    image = whole(data).resize((size, size), Image.Resampling[interpolation.upper()], box=view.box)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).transpose(2, 0, 1)


def psnr(pixels: np.ndarray, expected: np.ndarray) -> float:
    error = np.mean((pixels.astype(np.float64) - expected) ** 2)
    return 10 * math.log10(255**2 / max(error, 0.01))


@pytest.mark.parametrize("kind", JPEGS)
def test_views_are_those_of_an_exact_decode(library, kind):
    """At 35 dB a pixel is off by 4.5 levels, less than in a view moved by one pixel of a photograph."""
    data = jpeg_of(kind)
    width, height = whole(data).size
    interpolation = "bilinear" if kind == "grey" else "bicubic"
    for size in (224, 96):
        quality = [
            psnr(
                render(open_image(data, LIMIT), view, size, interpolation),
                exact(data, view, size, interpolation),
            )
            for view in views_of(width, height, 3 if kind == "huge" else 8)
        ]
        assert np.mean(quality) >= 35, (size, quality)


def test_a_view_moved_by_a_pixel_would_be_noticed():
    data = jpeg_of("photograph")
    for view in views_of(510, 510, 8):
        left, top, right, bottom = view.box
        moved = View((left + 1, top + 1, right + 1, bottom + 1), view.flip)
        assert psnr(exact(data, moved, 224), exact(data, view, 224)) < 35


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_the_decoders_give_the_same_pixels_at_every_scale(scale):
    """A run on machines with different libraries then learns from the same images, up to rounding."""
    for kind in ("photograph", "odd sides", "grey", "progressive", "whole chroma"):
        data = jpeg_of(kind)
        turbo = decode._turbo_decoded(open_image(data, LIMIT), scale)
        pillow = decode._pillow_decoded(open_image(data, LIMIT), scale)
        assert turbo is not None
        width, height = whole(data).size
        assert turbo.shape == (-(-height // scale), -(-width // scale), 3)
        assert np.array_equal(turbo, pillow), kind


def test_images_are_decoded_only_as_large_as_the_view_needs(monkeypatch):
    data = jpeg_of("photograph")
    scales: list[int] = []
    decoded = decode._turbo_decoded
    monkeypatch.setattr(
        decode, "_turbo_decoded", lambda image, scale: scales.append(scale) or decoded(image, scale)
    )
    for side, size in [(512, 224), (448, 224), (447, 224), (512, 128), (512, 64), (512, 16)]:
        render(open_image(data, LIMIT), View((0, 0, 512, side), False), size, "bicubic")
    assert scales == [2, 2, 1, 4, 8, 8]


def verdict(data: bytes, size: int) -> str | None:
    """Return why the whole image cannot be rendered; None if it can."""
    try:
        image = open_image(data, LIMIT)
        render(image, View((0, 0, *image.size), False), size, "bilinear")
    except BadSample as error:
        return str(error)
    return None


def exact_verdict(data: bytes) -> str | None:
    """Return the same verdict by decoding every pixel with Pillow."""
    try:
        image = open_image(data, LIMIT)
    except BadSample as error:
        return str(error)
    try:
        Image.open(io.BytesIO(image.data)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        return f"the image cannot be decoded ({error})"
    return None


def damaged(file: bytes, number: int, random: np.random.Generator) -> bytes:
    """Return a file cut anywhere or near its end, or with bytes changed in its headers or anywhere."""
    data = bytearray(file)
    if number % 4 == 0:
        del data[random.integers(1, len(data)) :]
    elif number % 4 == 1:
        del data[len(data) - random.integers(0, 12) :]
    if number % 4 >= 2 or random.random() < 0.3:
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data) if number % 4 == 2 else min(len(data), 700))] = random.integers(
                256
            )
    if random.random() < 0.1:
        data += random.bytes(int(random.integers(1, 50)))
    return bytes(data)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey", "cmyk", "restart markers", "small"])
def test_what_is_bad_does_not_depend_on_library_or_scale(monkeypatch, kind):
    """The verdicts decide which samples are replaced, and so they decide the order digest."""
    small = scene(1, 120, 90)
    undamaged = {
        "baseline": jpeg(small),
        "progressive": jpeg(small, progressive=True),
        "grey": jpeg(small.convert("L")),
        "cmyk": jpeg(small.convert("CMYK")),
        "restart markers": jpeg(small, restart_marker_rows=1),
        "small": jpeg(picture(1, 17, 9)),
    }[kind]
    random = np.random.default_rng(0)
    refused = 0
    for number in range(120):
        data = damaged(undamaged, number, random)
        expected = exact_verdict(data)
        refused += expected is not None
        for size in (8, 40, 90):  # decoded at an eighth, at half, whole
            assert verdict(data, size) == expected
            with monkeypatch.context() as without:
                without.setattr(decode, "simplejpeg", None)
                assert verdict(data, size) == expected
    assert 30 < refused < 90


def test_a_file_cut_short_is_bad_however_small_it_is_shown(library):
    for kind in ("photograph", "progressive", "restart markers"):
        data = jpeg_of(kind)
        for kept in (0.5, 0.9, 0.99):
            reason = verdict(data[: int(len(data) * kept)], 16)
            assert reason is not None
            assert "the image cannot be decoded (image file is truncated" in reason


def test_the_decoder_is_in_use():
    """Without the decoder, the tests above would compare Pillow with itself."""
    assert decode.simplejpeg is not None
    assert decode._turbo_decoded(open_image(encoded(picture(0)), LIMIT), 1) is not None
