"""The gradients of one step: of the whole batch at once, or by micro-batches (GradCache)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flipscale.config import Loss
from flipscale.distributed.ranks import Ranks
from flipscale.losses.contrastive import contrastive_loss
from flipscale.losses.sigmoid import sigmoid_loss
from flipscale.models.flip import Features
from flipscale.models.inputs import Inputs
from flipscale.sharding.strategy import ShardedModel


def accumulate_gradients(
    model: ShardedModel, inputs: Inputs, loss: Loss, micro_batch: int | None
) -> dict[str, Tensor]:
    """Leave the gradients of the global batch in the model, and return the scalars of the loss.

    With a micro-batch, the activations of only so many pairs are held at a time. The features are first
    computed without a graph, and the loss gives their gradients. Each micro-batch is then computed again and
    sent backward from these. The result equals the whole batch's up to rounding. The reconstruction depends
    on one image at a time, so that a micro-batch simply adds its share.

    Args:
        model: The sharded model; its gradients are clear.
        inputs: The image-text pairs of this process.
        loss: The `loss` block of the job.
        micro_batch: Pairs that this process works on at a time; None for all.

    Returns:
        0-d detached tensors by name: `loss`, `logit_scale` and, if the model has one, `logit_bias`. If hidden
        patches are reconstructed, also `reconstruction`, which `loss` then includes times its weight.
    """
    if micro_batch is None or micro_batch >= inputs.size:
        return _in_one_piece(model, inputs, loss)
    return _in_parts(model, inputs, loss, micro_batch)


@dataclass(frozen=True)
class _Weighted:
    """The reconstruction loss of a job: whether it is computed, and its weight in the sum."""

    wanted: bool
    weight: float

    @classmethod
    def of(cls, loss: Loss) -> _Weighted:
        block = loss.reconstruction
        return cls(False, 0.0) if block is None else cls(True, block.weight)


def _in_one_piece(model: ShardedModel, inputs: Inputs, loss: Loss) -> dict[str, Tensor]:
    reconstruction = _Weighted.of(loss)

    with model.micro_step(last=True):
        features = model.forward(inputs, reconstruct=reconstruction.wanted)
        head = _head(features)
        value = _pair_loss(*_both(features), head, loss)

        total = value
        if features.reconstruction is not None:
            total = value + reconstruction.weight * features.reconstruction
        model.backward(total)

    reported = None if inputs.keep is None else features.reconstruction
    return _scalars(value, head, reported, reconstruction.weight)


def _in_parts(model: ShardedModel, inputs: Inputs, loss: Loss, micro_batch: int) -> dict[str, Tensor]:
    reconstruction = _Weighted.of(loss)
    parts = inputs.split(micro_batch)

    # Compute all features without a graph, and the gradients of the loss by these.
    with torch.no_grad():
        features = [model.forward(part) for part in parts]
    images, texts = (
        torch.cat(list(side)).requires_grad_() for side in zip(*map(_both, features), strict=True)
    )
    head = [value.detach().requires_grad_() for value in _head(features[0])]
    value = _pair_loss(images, texts, head, loss)
    image_gradients, text_gradients, *head_gradients = torch.autograd.grad(value, (images, texts, *head))

    # Compute each part again with a graph, and send it backward from the gradients of its features.
    gradients = zip(
        torch.split(image_gradients, micro_batch), torch.split(text_gradients, micro_batch), strict=True
    )
    reconstructed: Tensor | None = None
    for number, (part, feature_gradients) in enumerate(zip(parts, gradients, strict=True)):
        last = number == len(parts) - 1
        with model.micro_step(last):
            again = model.forward(part, reconstruct=reconstruction.wanted)
            surrogate = _surrogate(again, feature_gradients, head_gradients, counts_head=last)

            if again.reconstruction is not None:
                share = again.reconstruction * (part.size / inputs.size)
                surrogate = surrogate + reconstruction.weight * share
                before = 0.0 if reconstructed is None else reconstructed
                reconstructed = before + share.detach()

            model.backward(surrogate)

    reported = None if inputs.keep is None else reconstructed
    return _scalars(value, head, reported, reconstruction.weight)


def _surrogate(
    features: Features,
    feature_gradients: tuple[Tensor, Tensor],
    head_gradients: list[Tensor],
    *,
    counts_head: bool,
) -> Tensor:
    """Return a 0-d value whose gradients are those of the loss, by the features of one part.

    Args:
        features: The features of the part, with their graph.
        feature_gradients: Gradients of the loss by the image and text features of the part.
        head_gradients: Gradients of the loss by the scale and the bias.
        counts_head: Whether the gradients of scale and bias count; they do in one part of the batch.
    """
    images, texts = _both(features)
    image_gradient, text_gradient = feature_gradients
    surrogate = (images * image_gradient).sum() + (texts * text_gradient).sum()

    for value, gradient in zip(_head(features), head_gradients, strict=True):
        # Every part has scale and bias in its graph, as the sharding libraries expect of each parameter.
        surrogate = surrogate + value * (gradient if counts_head else 0.0)
    return surrogate


def _both(features: Features) -> tuple[Tensor, Tensor]:
    assert features.images is not None
    assert features.texts is not None
    return features.images, features.texts


def _head(features: Features) -> list[Tensor]:
    """Return what makes logits of the features: the scale and, for the sigmoid loss, the bias."""
    return [features.scale] if features.bias is None else [features.scale, features.bias]


def _pair_loss(images: Tensor, texts: Tensor, head: list[Tensor], loss: Loss) -> Tensor:
    if loss.kind == "sigmoid":
        scale, bias = head
        return sigmoid_loss(images, texts, scale, bias, tile=loss.tile)

    (scale,) = head
    return contrastive_loss(images, texts, scale, tile=loss.tile)


def _scalars(
    loss: Tensor, head: list[Tensor], reconstruction: Tensor | None, weight: float
) -> dict[str, Tensor]:
    """Return the scalars to log.

    Args:
        loss: The loss of the global batch.
        head: The scale and, for the sigmoid loss, the bias.
        reconstruction: The reconstruction loss of this process's pairs only, if any.
        weight: The weight of the reconstruction loss.
    """
    scalars = dict(zip(("loss", "logit_scale", "logit_bias"), (loss, *head), strict=False))

    if reconstruction is not None:
        ranks = Ranks.of()
        # Every process has equally many pairs, and every image equally many hidden patches.
        mean = ranks.sum_(reconstruction.detach().clone()) / ranks.size
        scalars |= {"loss": loss + weight * mean, "reconstruction": mean}

    return {name: value.detach() for name, value in scalars.items()}
