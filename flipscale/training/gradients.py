"""The gradients of one step: in one piece, or by micro-batches with cached features (GradCache)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flipscale.config import Job, Phase
from flipscale.distributed.ranks import Ranks
from flipscale.losses.contrastive import contrastive_loss
from flipscale.losses.sigmoid import sigmoid_loss
from flipscale.models.flip import Features
from flipscale.models.masking import visible_patches, visible_tokens
from flipscale.models.presets import ModelSpec
from flipscale.sharding.strategy import ShardedModel


class Pairs(NamedTuple):
    """One process's image-text pairs on its device; n of them."""

    images: Tensor  # uint8 (n, 3, size, size)
    tokens: Tensor  # int64 (n, context_length)
    keep: Tensor | None  # int64 (n, K), ids of the visible patches
    keep_tokens: Tensor | None = None  # int64 (n, K), slots of the visible tokens

    @classmethod
    def masked(
        cls,
        images: Tensor,
        tokens: Tensor,
        positions: Tensor,
        phase: Phase,
        spec: ModelSpec,
        padding_id: int,
        seed: int,
    ) -> Pairs:
        """The pairs at these global sample positions, int64 (n,), with the masks that `phase` draws for them.

        Args:
            spec: the model's shape in this phase.
            padding_id: of the tokenizer.
            seed: of the run.
        """
        keep = visible_patches(positions, spec.vision.patches, phase.mask_ratio, seed)
        ratio, kind = phase.text_mask_ratio, phase.text_mask
        keep_tokens = visible_tokens(tokens, positions, ratio, seed, kind, spec.text.pool, padding_id)
        return cls(images, tokens, keep, keep_tokens)

    def split(self, size: int) -> list[Pairs]:
        """Consecutive parts of at most `size` pairs."""
        images, tokens = self.images.split(size), self.tokens.split(size)
        masks = [
            [None] * len(images) if mask is None else mask.split(size)
            for mask in (self.keep, self.keep_tokens)
        ]
        return [Pairs(*part) for part in zip(images, tokens, *masks, strict=True)]


def accumulate_gradients(model: ShardedModel, pairs: Pairs, job: Job) -> dict[str, Tensor]:
    """Leave the global batch's gradients in `model`; return its `loss`, `logit_scale` and, where the model
    has one, `logit_bias` (0-d, detached). Where hidden patches are reconstructed, also `reconstruction`, of
    which `loss` then holds `loss.reconstruction.weight` times as much.

    With `sharding.micro_batch` the activations of only so many pairs are held at a time: features are first
    computed without a graph, the loss gives their gradients, and each micro-batch is then computed again
    and sent backward from these. The result equals the whole batch's up to rounding. The reconstruction is
    each image's own affair, so that a micro-batch just adds its share.
    """
    size = job.sharding.micro_batch
    settings = job.loss.reconstruction
    weight, reconstruct = (0.0, False) if settings is None else (settings.weight, True)
    if size is None or size >= len(pairs.images):
        with model.micro_step(last=True):
            whole = model.forward(*pairs, reconstruct=reconstruct)
            loss = _loss(_given(whole.images), _given(whole.texts), _head(whole), job)
            model.backward(loss if whole.reconstruction is None else loss + weight * whole.reconstruction)
        return _scalars(loss, _head(whole), None if pairs.keep is None else whole.reconstruction, weight)

    parts = pairs.split(size)
    with torch.no_grad():
        features = [model.forward(*part) for part in parts]
    images = torch.cat([_given(part.images) for part in features]).requires_grad_()
    texts = torch.cat([_given(part.texts) for part in features]).requires_grad_()
    head = [value.detach().requires_grad_() for value in _head(features[0])]
    loss = _loss(images, texts, head, job)
    image_gradients, text_gradients, *head_gradients = torch.autograd.grad(loss, (images, texts, *head))
    gradients = zip(image_gradients.split(size), text_gradients.split(size), strict=True)
    reconstruction: Tensor | None = None
    for number, (part, (image_gradient, text_gradient)) in enumerate(zip(parts, gradients, strict=True)):
        last = number == len(parts) - 1
        with model.micro_step(last):
            again = model.forward(*part, reconstruct=reconstruct)
            surrogate = (_given(again.images) * image_gradient).sum() + (
                _given(again.texts) * text_gradient
            ).sum()
            for value, gradient in zip(_head(again), head_gradients, strict=True):
                # Every part has them in its graph, as the sharding libraries expect of each parameter.
                surrogate = surrogate + value * (gradient if last else 0.0)
            if again.reconstruction is not None:
                share = again.reconstruction * (len(part.images) / len(pairs.images))
                surrogate = surrogate + weight * share
                before = 0.0 if reconstruction is None else reconstruction
                reconstruction = before + share.detach()
            model.backward(surrogate)
    return _scalars(loss, head, None if pairs.keep is None else reconstruction, weight)


def _head(features: Features) -> list[Tensor]:
    """What makes logits of the features: the scale and, for the sigmoid loss, the bias."""
    return [features.scale] if features.bias is None else [features.scale, features.bias]


def _loss(images: Tensor, texts: Tensor, head: list[Tensor], job: Job) -> Tensor:
    if job.loss.kind == "sigmoid":
        scale, bias = head
        return sigmoid_loss(images, texts, scale, bias, tile=job.loss.tile)
    (scale,) = head
    return contrastive_loss(images, texts, scale, tile=job.loss.tile)


def _scalars(
    loss: Tensor, head: list[Tensor], reconstruction: Tensor | None, weight: float
) -> dict[str, Tensor]:
    """`loss` is the global batch's already; `reconstruction` is of this process's pairs alone."""
    scalars = dict(zip(("loss", "logit_scale", "logit_bias"), (loss, *head), strict=False))
    if reconstruction is not None:
        ranks = Ranks.of()
        # Every process has equally many pairs, and every image equally many hidden patches.
        mean = ranks.sum_(reconstruction.detach().clone()) / ranks.size
        scalars |= {"loss": loss + weight * mean, "reconstruction": mean}
    return {name: value.detach() for name, value in scalars.items()}


def _given(features: Tensor | None) -> Tensor:
    assert features is not None
    return features
