"""The gradients of one step: in one piece, or by micro-batches with cached features (GradCache)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flipscale.config import Job
from flipscale.losses.contrastive import contrastive_loss
from flipscale.sharding.strategy import ShardedModel


class Pairs(NamedTuple):
    """One process's image-text pairs on its device; n of them."""

    images: Tensor  # uint8 (n, 3, size, size)
    tokens: Tensor  # int64 (n, context_length)
    keep: Tensor | None  # int64 (n, K), ids of the visible patches

    def split(self, size: int) -> list[Pairs]:
        """Consecutive parts of at most `size` pairs."""
        keeps = self.keep.split(size) if self.keep is not None else None
        parts = zip(self.images.split(size), self.tokens.split(size), strict=True)
        return [Pairs(i, t, keeps[k] if keeps is not None else None) for k, (i, t) in enumerate(parts)]


def accumulate_gradients(model: ShardedModel, pairs: Pairs, job: Job) -> tuple[Tensor, Tensor]:
    """Leave the global batch's gradients in `model`; return its loss and the logit scale (0-d, detached).

    With `sharding.micro_batch` the activations of only so many pairs are held at a time: features are first
    computed without a graph, the loss gives their gradients, and each micro-batch is then computed again
    and sent backward from these. The result equals the whole batch's up to rounding.
    """
    size = job.sharding.micro_batch
    if size is None or size >= len(pairs.images):
        with model.micro_step(last=True):
            images, texts, scale = model.forward(*pairs)
            loss = _loss(images, texts, scale, job)
            model.backward(loss)
        return loss.detach(), scale.detach()

    parts = pairs.split(size)
    with torch.no_grad():
        features = [model.forward(*part) for part in parts]
    images = torch.cat([_given(part[0]) for part in features]).requires_grad_()
    texts = torch.cat([_given(part[1]) for part in features]).requires_grad_()
    scale = features[0][2].detach().requires_grad_()
    loss = _loss(images, texts, scale, job)
    image_gradients, text_gradients, scale_gradient = torch.autograd.grad(loss, (images, texts, scale))
    gradients = zip(image_gradients.split(size), text_gradients.split(size), strict=True)
    for number, (part, (image_gradient, text_gradient)) in enumerate(zip(parts, gradients, strict=True)):
        last = number == len(parts) - 1
        with model.micro_step(last):
            part_images, part_texts, part_scale = model.forward(*part)
            surrogate = (_given(part_images) * image_gradient).sum() + (
                _given(part_texts) * text_gradient
            ).sum()
            # Every part has the scale in its graph, as the sharding libraries expect of each parameter.
            surrogate = surrogate + part_scale * (scale_gradient if last else 0.0)
            model.backward(surrogate)
    return loss.detach(), scale.detach()


def _loss(images: Tensor | None, texts: Tensor | None, scale: Tensor, job: Job) -> Tensor:
    return contrastive_loss(_given(images), _given(texts), scale, tile=job.loss.tile)


def _given(features: Tensor | None) -> Tensor:
    assert features is not None
    return features
