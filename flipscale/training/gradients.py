"""The gradients of one step: in one piece, or by micro-batches with cached features (GradCache)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flipscale.config import Job
from flipscale.losses.contrastive import contrastive_loss
from flipscale.losses.sigmoid import sigmoid_loss
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


def accumulate_gradients(model: ShardedModel, pairs: Pairs, job: Job) -> dict[str, Tensor]:
    """Leave the global batch's gradients in `model`; return its `loss`, `logit_scale` and, where the model
    has one, `logit_bias` (0-d, detached).

    With `sharding.micro_batch` the activations of only so many pairs are held at a time: features are first
    computed without a graph, the loss gives their gradients, and each micro-batch is then computed again
    and sent backward from these. The result equals the whole batch's up to rounding.
    """
    size = job.sharding.micro_batch
    if size is None or size >= len(pairs.images):
        with model.micro_step(last=True):
            images, texts, *head = model.forward(*pairs)
            loss = _loss(_given(images), _given(texts), head, job)
            model.backward(loss)
        return _scalars(loss, head)

    parts = pairs.split(size)
    with torch.no_grad():
        features = [model.forward(*part) for part in parts]
    images = torch.cat([_given(part[0]) for part in features]).requires_grad_()
    texts = torch.cat([_given(part[1]) for part in features]).requires_grad_()
    head = [value.detach().requires_grad_() for value in features[0][2:]]
    loss = _loss(images, texts, head, job)
    image_gradients, text_gradients, *head_gradients = torch.autograd.grad(loss, (images, texts, *head))
    gradients = zip(image_gradients.split(size), text_gradients.split(size), strict=True)
    for number, (part, (image_gradient, text_gradient)) in enumerate(zip(parts, gradients, strict=True)):
        last = number == len(parts) - 1
        with model.micro_step(last):
            part_images, part_texts, *part_head = model.forward(*part)
            surrogate = (_given(part_images) * image_gradient).sum() + (
                _given(part_texts) * text_gradient
            ).sum()
            for value, gradient in zip(part_head, head_gradients, strict=True):
                # Every part has them in its graph, as the sharding libraries expect of each parameter.
                surrogate = surrogate + value * (gradient if last else 0.0)
            model.backward(surrogate)
    return _scalars(loss, head)


def _loss(images: Tensor, texts: Tensor, head: list[Tensor], job: Job) -> Tensor:
    """`head`: the logit scale and, for the sigmoid loss, the logit bias."""
    if job.loss.kind == "sigmoid":
        scale, bias = head
        return sigmoid_loss(images, texts, scale, bias, tile=job.loss.tile)
    (scale,) = head
    return contrastive_loss(images, texts, scale, tile=job.loss.tile)


def _scalars(loss: Tensor, head: list[Tensor]) -> dict[str, Tensor]:
    names = ("loss", "logit_scale", "logit_bias")
    return {name: value.detach() for name, value in zip(names, (loss, *head), strict=False)}


def _given(features: Tensor | None) -> Tensor:
    assert features is not None
    return features
