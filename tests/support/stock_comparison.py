"""Small models whose every weight counts, and how far their features are from those of stock OpenCLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flipscale.models.flip import FLIP, build_model
from flipscale.models.presets import ModelSpec, preset

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "blue",
    "star",
    "circle",
    "##s",
    "of",
    "left",
]
FLIP_SPEC = preset("vit_tiny_p8", vocab_size=len(PIECES))
CLIP_SPEC = preset("clip_tiny_p8")
SIGMOID_SPEC = preset("vit_tiny_p8", vocab_size=len(PIECES), logit_bias=True)


def perturbed(spec: ModelSpec) -> FLIP:
    """Return a model without a weight at its initial value, so that biases and norms matter, too."""
    model = build_model(spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def some_images(spec: ModelSpec, batch: int = 4) -> Tensor:
    side = spec.vision.image_size
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)


def some_texts(spec: ModelSpec, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(spec.text.vocab_size, (batch, spec.text.context_length), generator=generator)


def normalized(images: Tensor, mean: Any, std: Any) -> Tensor:
    return (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def stock_differences(stock: Any, model: FLIP) -> tuple[float, float]:
    """Return the largest differences of image and text features.

    Ours are computed from bytes, those of stock OpenCLIP from floats.
    """
    spec = model.spec
    images = some_images(spec)
    texts = some_texts(spec)
    visual = stock.visual
    floats = normalized(images, visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"])
    with torch.no_grad():
        their_images = stock.encode_image(floats, normalize=True)
        their_texts = stock.encode_text(texts, normalize=True)
        our_images = model.encode_image(images)
        our_texts = model.encode_text(texts)

    image_difference = (our_images - their_images).abs().max().item()
    text_difference = (our_texts - their_texts).abs().max().item()
    return image_difference, text_difference
