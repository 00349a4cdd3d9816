"""RandAugment as fine-tuning uses it: timm's, made safe for Pillow 12."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from flipscale.models.flip import FLIP
from flipscale.third_party import import_timm


@dataclass(frozen=True)
class RandAugment:
    """timm's RandAugment, drawn again if it would posterize an image to 0 bits per colour.

    Such an image would be black, and Pillow 12 refuses to make it.
    """

    transform: Callable[[Image.Image], Image.Image]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return a random change of an image; it draws from `random` and `numpy.random`."""
        while True:
            try:
                return self.transform(image)
            except ValueError as error:
                if "bits" not in str(error):
                    raise


def rand_augment(description: str, model: FLIP) -> RandAugment:
    """Return the RandAugment of timm's `description` for the images of a model."""
    hints = {
        "translate_const": int(0.45 * model.spec.vision.image_size),
        "img_mean": tuple(round(255 * mean) for mean in model.spec.mean),
        "interpolation": Image.Resampling.BICUBIC,  # as MAE's code; timm would draw one for each rotation
    }
    auto_augment = import_timm("timm.data.auto_augment")
    return RandAugment(auto_augment.rand_augment_transform(description, hints))
