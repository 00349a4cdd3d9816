"""Models whose every weight counts, and how far their features lie from those of stock OpenCLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flipscale.models.flip import FLIP, build_model
from flipscale.models.presets import ModelSpec


def perturbed(spec: ModelSpec) -> FLIP:
    """A model with no weight at its initial value: biases and norms are all in play."""
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


def stock_differences(stock: torch.nn.Module, model: FLIP) -> tuple[float, float]:
    """Largest differences of image and text features, ours from bytes, stock OpenCLIP's from floats."""
    spec = model.spec
    images, texts = some_images(spec), some_texts(spec)
    visual: Any = stock.visual
    floats = normalized(images, visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"])
    with torch.no_grad():
        theirs = stock.encode_image(floats, normalize=True), stock.encode_text(texts, normalize=True)  # type: ignore[operator]
        ours = model.encode_image(images), model.encode_text(texts)
    return tuple((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))  # type: ignore[return-value]
