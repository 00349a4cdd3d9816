"""Decoding: bytes to pixels, with a reason for everything that cannot be used."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from flipscale.data.quarantine import BadSample
from flipscale.data.samples.augment import View

# Pillow replaces either package if it has no wheel for the platform: same views, two to three times slower.
try:
    import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
except ImportError:
    simplejpeg = None
try:
    import cykooz_resizer  # pyright: ignore[reportMissingTypeStubs]
except ImportError:
    cykooz_resizer = None

MIN_SIDE = 8  # pixels; a smaller image shows nothing

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_FILTER = {"bicubic": "catmull_rom", "bilinear": "bilinear"}  # the names of Pillow's filters elsewhere


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read an image's header; its pixels are not decoded yet.

    Args:
        data: Contents of a JPEG, PNG or WebP file.
        max_pixels: Largest width times height that is accepted.

    Raises:
        BadSample: If the data is not an image, a side is below MIN_SIDE, or the image has too many pixels.
    """
    if not data:
        raise BadSample("the image is missing or empty")

    pillow_limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # max_pixels decides
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise BadSample(f"not an image ({type(error).__name__})") from None
    finally:
        Image.MAX_IMAGE_PIXELS = pillow_limit

    width, height = image.size
    if width * height > max_pixels:
        raise BadSample(f"the image has {width} x {height} pixels, more than {max_pixels}")
    if min(width, height) < MIN_SIDE:
        raise BadSample(f"the image has only {width} x {height} pixels")

    return image


def render(image: Image.Image, view: View, size: int, interpolation: str) -> npt.NDArray[np.uint8]:
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

    try:
        pixels = _turbo_decoded(image, scale)
        if pixels is None:
            pixels = _pillow_decoded(image, scale)
    except (OSError, ValueError, SyntaxError, IndexError, EOFError) as error:
        raise BadSample(f"the image cannot be decoded ({error})") from None

    left, top, right, bottom = (edge / scale for edge in view.box)
    resized = _resized(pixels, (left, top, right, bottom), size, interpolation)
    return (resized[:, ::-1] if view.flip else resized).transpose(2, 0, 1)


def _scale(image: Image.Image, view: View, size: int) -> int:
    """Return the factor by which decoding shrinks an image: 1, 2, 4 or 8.

    libjpeg has finer steps (such as 5/8), but without vector instructions: they take longer than full size.
    """
    if not isinstance(image, JpegImageFile):
        return 1

    left, top, right, bottom = view.box
    side = min(right - left, bottom - top)
    return next((scale for scale in (8, 4, 2) if side >= scale * size), 1)


def _turbo_decoded(image: Image.Image, scale: int) -> npt.NDArray[np.uint8] | None:
    """Decode to (height, width, 3) with simplejpeg.

    Returns:
        None if simplejpeg is missing, does not support the image, or rejects it. Pillow then decides, so that
        the same images count as bad with and without simplejpeg.
    """
    if simplejpeg is None or not isinstance(image, JpegImageFile) or image.mode not in ("RGB", "L"):
        return None

    assert isinstance(image.fp, io.BytesIO)
    height = -(-image.height // scale)
    width = -(-image.width // scale)
    try:
        pixels = simplejpeg.decode_jpeg(
            image.fp.getbuffer(), "RGB", min_height=height, min_width=width, min_factor=scale
        )
    except ValueError:
        return None

    return pixels if pixels.shape == (height, width, 3) else None


def _pillow_decoded(image: Image.Image, scale: int) -> npt.NDArray[np.uint8]:
    """Decode to (height, width, 3) with Pillow."""
    if scale > 1:
        image.draft(image.mode, (image.width // scale, image.height // scale))
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would turn white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


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
