"""Pillow's decoders: the one that a file's kind needs, and no other."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from flipscale.data.images import gif, jpeg, png
from flipscale.data.images.header import Kind
from flipscale.data.quarantine import BadSample

# Pillow warns of damaged tags in files of others, once per place and wording. The verdict is all that counts.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")

_DECODERS: dict[Kind, Callable[[io.BytesIO], Image.Image]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
    "avif": AvifImageFile,
    "jpeg2000": Jpeg2KImageFile,
}
_FEATURES: dict[Kind, str] = {"webp": "webp", "avif": "avif", "jpeg2000": "jpg_2000", "tiff": "libtiff"}
"""Kinds for which Pillow may have been built without a decoder."""

_TIFF_CODINGS = {"raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "group3", "group4"}
_BMP_CODINGS = {0, 3}  # not the run lengths, which Pillow decodes slowly, byte by byte

_WITHOUT_METADATA: dict[Kind, Callable[[bytes], bytes]] = {
    "jpeg": jpeg.pixels_only,
    "png": png.pixels_only,
    "gif": gif.pixels_only,
}


@cache
def can_decode(kind: Kind) -> bool:
    """Return whether the installed Pillow decodes images of this kind."""
    return kind not in _FEATURES or bool(features.check(_FEATURES[kind]))


def open_with_pillow(kind: Kind, data: bytes) -> Image.Image:
    """Return an image whose pixels are not decoded yet.

    Metadata is taken out where it can be: what Pillow reads of it differs between its versions.

    Raises:
        BadSample: If the file is coded in a way that is not read.
    """
    if kind in _WITHOUT_METADATA:
        data = _WITHOUT_METADATA[kind](data)
    image = _DECODERS[kind](io.BytesIO(data))

    coding = image.info.get("compression")
    if kind == "tiff" and (coding not in _TIFF_CODINGS or image.mode in ("I", "F")):
        raise BadSample(f"the TIFF is coded in a way that is not supported ({coding}, {image.mode})")
    if kind == "bmp" and coding not in _BMP_CODINGS:
        raise BadSample("the BMP is coded in a way that is not supported")

    return image


def rgb_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Decode an image of any mode to (height, width, 3).

    Grey of 16 bits keeps its upper 8; Pillow's own conversion would make it white. Transparency is left out.
    """
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
