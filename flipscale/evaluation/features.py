"""Image and text features of a whole evaluation set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from flipscale.data.tokenizer import Tokenizer
from flipscale.errors import UserError


class DualEncoder(Protocol):
    """What evaluation asks of a model: a torch module that encodes uint8 images and token ids."""

    training: bool

    def encode_image(self, images: torch.Tensor) -> torch.Tensor: ...
    def encode_text(self, texts: torch.Tensor) -> torch.Tensor: ...
    def parameters(self) -> Iterator[torch.nn.Parameter]: ...
    def train(self, mode: bool = True) -> object: ...


def encode_images(model: DualEncoder, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """L2-normalised features (N, D), fp32, on the model's device, of uint8 batches (B, 3, H, W), N > 0.

    Raises UserError if a feature is not finite.
    """
    with _inference(model) as device:
        features = [model.encode_image(images.to(device)).float() for images in batches]
    return _finite(torch.cat(features), "image")


def encode_texts(
    model: DualEncoder, tokenizer: Tokenizer, captions: Sequence[str], batch_size: int = 256
) -> torch.Tensor:
    """L2-normalised features (len(captions), D), fp32, on the model's device; there is at least one caption.

    Equal captions are encoded once and get equal features. Raises UserError if a feature is not finite.
    """
    place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    distinct = list(place)
    with _inference(model) as device:
        features = [
            model.encode_text(tokenizer(distinct[start : start + batch_size]).to(device)).float()
            for start in range(0, len(distinct), batch_size)
        ]
    order = torch.tensor([place[caption] for caption in captions], device=device)
    return _finite(torch.cat(features), "text")[order]


@contextmanager
def _inference(model: DualEncoder) -> Iterator[torch.device]:
    """Evaluation mode without gradients and without autocast; gives the model's device."""
    parameter = next(iter(model.parameters()), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield device
    finally:
        model.train(was_training)


def _finite(features: torch.Tensor, kind: str) -> torch.Tensor:
    bad = int((~torch.isfinite(features).all(dim=1)).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(features)} {kind} features are NaN or infinite: the model diverged or "
            "its weights are damaged; evaluate an earlier checkpoint"
        )
    return features
