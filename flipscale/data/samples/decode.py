"""Decoding: bytes to pixels, with a reason for everything that cannot be used."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from flipscale.data.images.header import ImageHeader
from flipscale.data.images.inspection import inspect, unreadable
from flipscale.data.images.pillow import open_with_pillow, rgb_pixels
from flipscale.data.quarantine import BadSample
from flipscale.data.samples.augment import View

# Pillow replaces either package if it has no wheel for the platform: same views, two to three times slower.
try:
    import simplejpeg
except ImportError:
    simplejpeg = None
try:
    import cykooz_resizer
except ImportError:
    cykooz_resizer = None

_SCALES = (8, 4, 2)  # factors by which decoding can shrink a JPEG
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_FILTER = {"bicubic": "catmull_rom", "bilinear": "bilinear"}  # the names of Pillow's filters elsewhere


@dataclass(frozen=True)
class EncodedImage:
    """An image whose pixels are not decoded yet."""

    data: bytes
    header: ImageHeader

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.header.width, self.header.height


def open_image(data: bytes, max_pixels: int) -> EncodedImage:
    """Read an image's header; its pixels are not decoded yet.

    Args:
        data: Contents of an image file.
        max_pixels: Largest width times height that is accepted.

    Raises:
        BadSample: If the data is not an image that can be read, a side is below 8 pixels, or decoding would
            take too much memory or time.
        UserError: If the installed Pillow has no decoder for it.
    """
    return EncodedImage(data, inspect(data, max_pixels))


def render(image: EncodedImage, view: View, size: int, interpolation: str) -> npt.NDArray[np.uint8]:
    """Decode an image and return its view.

    A JPEG is decoded at a half, a quarter or an eighth of its size if each side of the view still has at
    least `size` pixels then. libjpeg leaves out the finer frequencies, but still reads its data to the end.

    Args:
        image: An image of `open_image`.
        view: The part of the image to return.
        size: Side of the result, in pixels.
        interpolation: "bicubic" or "bilinear".

    Returns:
        RGB array of shape (3, size, size); it may be strided.

    Raises:
        BadSample: If the pixels cannot be decoded, for example because the file was cut short.
    """
    scale = _scale(image, view, size)
    pixels = _decoded(image, scale)

    left, top, right, bottom = (edge / scale for edge in view.box)
    resized = _resized(pixels, (left, top, right, bottom), size, interpolation)
    return (resized[:, ::-1] if view.flip else resized).transpose(2, 0, 1)


def whole(image: EncodedImage) -> npt.NDArray[np.uint8]:
    """Decode an image to (height, width, 3); orientation that its metadata names is not applied.

    Raises:
        BadSample: As for `render`.
    """
    return _decoded(image, 1)


def decode_at_every_scale(image: EncodedImage) -> None:
    """Decode an image in each way that `render` and `whole` may choose, whatever the outcome."""
    for scale in (1, *_SCALES):
        with suppress(BadSample):
            _decoded(image, scale if image.header.kind == "jpeg" else 1)


def _scale(image: EncodedImage, view: View, size: int) -> int:
    """Return the factor by which decoding shrinks an image: 1, 2, 4 or 8.

    libjpeg has finer steps (such as 5/8), but without vector instructions: they take longer than full size.
    """
    if image.header.kind != "jpeg":
        return 1

    left, top, right, bottom = view.box
    side = min(right - left, bottom - top)
    return next((scale for scale in _SCALES if side >= scale * size), 1)


def _decoded(image: EncodedImage, scale: int) -> npt.NDArray[np.uint8]:
    """Decode to (height, width, 3), with sides divided by `scale`.

    Whatever a decoder raises is a verdict on the image: decoders have no other input.
    """
    try:
        pixels = _turbo_decoded(image, scale)
        if pixels is None:
            pixels = _pillow_decoded(image, scale)
    except BadSample:
        raise
    except Exception as error:
        raise unreadable(error) from None

    if pixels.shape != _shape(image, scale):
        raise BadSample("the image has another size than its header says")
    return pixels


def _shape(image: EncodedImage, scale: int) -> tuple[int, int, int]:
    return -(-image.header.height // scale), -(-image.header.width // scale), 3


def _turbo_decoded(image: EncodedImage, scale: int) -> npt.NDArray[np.uint8] | None:
    """Decode to (height, width, 3) with simplejpeg.

    Returns:
        None if simplejpeg is missing, does not support the image, or rejects it. Pillow then decides, so that
        the same images count as bad with and without simplejpeg.
    """
    if simplejpeg is None or image.header.kind != "jpeg" or image.header.channels == 4:
        return None

    height, width, _ = shape = _shape(image, scale)
    try:
        pixels = simplejpeg.decode_jpeg(
            image.data, "RGB", min_height=height, min_width=width, min_factor=scale
        )
    except ValueError:
        return None

    return pixels if pixels.shape == shape else None


def _pillow_decoded(image: EncodedImage, scale: int) -> npt.NDArray[np.uint8]:
    """Decode to (height, width, 3) with Pillow."""
    opened = open_with_pillow(image.header.kind, image.data)
    if opened.size != image.size:
        raise BadSample("the image has another size than its header says")
    if scale > 1:
        opened.draft(opened.mode, (opened.width // scale, opened.height // scale))

    return rgb_pixels(opened)


def _resized(
    pixels: npt.NDArray[np.uint8], box: tuple[float, float, float, float], size: int, interpolation: str
) -> npt.NDArray[np.uint8]:
    """Resize a box of (height, width, 3) pixels to (size, size, 3), antialiased."""
    if cykooz_resizer is None:
        resized = Image.fromarray(pixels).resize((size, size), _RESAMPLING[interpolation], box=box)
        return np.asarray(resized)

    height, width, _ = pixels.shape
    left, top, right, bottom = box
    rgb = cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(width, height, rgb, pixels.tobytes())
    result = cykooz_resizer.ImageData(size, size, rgb)

    filter_type = cykooz_resizer.FilterType[_FILTER[interpolation]]
    options = cykooz_resizer.ResizeOptions(
        resize_alg=cykooz_resizer.ResizeAlg.convolution(filter_type),
        crop_box=cykooz_resizer.CropBox(left, top, right - left, bottom - top),
    )

    cykooz_resizer.Resizer().resize(source, result, options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size, size, 3)
