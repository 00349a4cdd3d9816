"""The sigmoid loss of SigLIP over the global batch, in memory of batch x tile.

With l[i, j] = scale * image_i . text_j + bias and z = 1 for the matching pair, -1 for all others, the loss
is -1/N sum_ij log sigmoid(z l[i, j]) (Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023,
section 3.2). No softmax couples the pairs, so the gradients are computed together with the loss, in one pass
over the tiles. The backward pass only scales them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from flipscale.distributed.ranks import Ranks
from flipscale.losses.text_gradients import TextGradients
from flipscale.losses.tiles import LogitTiles, checked_tile


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    tile: int = 512,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return the sigmoid loss of the N x N pairs of all ranks, divided by N, in nats.

    Gradients are scaled for strategies that average them over ranks, as those of `contrastive_loss`.

    Args:
        image_features: (n, d), L2-normalised; n is the same on every rank.
        text_features: (n, d), of the same dtype; row i belongs to image i.
        logit_scale: 0-d or (1,), the factor itself (exp of the learned parameter).
        logit_bias: 0-d or (1,), added to every logit.
        tile: Image rows computed at a time; clamped to n.
        group: The ranks that share the batch; default: the default group, or this process by itself.

    Returns:
        0-d fp32 (fp64 for fp64 features), the same on every rank. All arithmetic is at least fp32, also under
        autocast. The forward pass communicates, so all ranks must run it; it cannot be differentiated twice.

    Raises:
        UserError: If `tile` is below 1.
        ValueError: If the features differ in shape or dtype, or are empty.
    """
    tile = checked_tile(image_features, text_features, tile)
    inputs = (image_features, text_features, logit_scale, logit_bias)
    differentiate = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
    apply = cast("Callable[..., Tensor]", _SigmoidLoss.apply)
    return apply(*inputs, Ranks.of(group), tile, differentiate)


class _SigmoidLoss(torch.autograd.Function):
    """The loss as one operation; it saves only the four finished gradients for the backward pass."""

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]: torch's signature is open
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        ranks: Ranks,
        tile: int,
        differentiate: bool,
    ) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            tiles = LogitTiles(images, ranks.gather(texts), logit_scale.reshape(()), ranks, tile)
            loss, gradients = _loss_and_gradients(tiles, logit_bias.reshape(()), differentiate)

        inputs = (images, texts, logit_scale, logit_bias)
        if gradients is not None:
            ctx.save_for_backward(
                *(g.to(x.dtype).reshape(x.shape) for g, x in zip(gradients, inputs, strict=True))
            )
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]: torch's signature is open
        ctx: Any, loss_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (*(gradient * loss_grad for gradient in ctx.saved_tensors), None, None, None)


def _loss_and_gradients(
    tiles: LogitTiles, bias: Tensor, differentiate: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor] | None]:
    """Return the loss and, if requested, its gradients by this rank's images and texts, scale and bias."""
    ranks = tiles.ranks
    loss = tiles.images.new_zeros((), dtype=torch.float64)  # N^2 / tile terms: fp32 would lose digits
    image_grads = torch.zeros_like(tiles.images, dtype=tiles.dtype)
    sums = TextGradients(tiles)
    bias_grad = image_grads.new_zeros(())

    for block in tiles.blocks():
        block_grads = torch.zeros_like(block.texts)
        for tile in tiles.tiles(block):
            logits = tile.logits.add_(bias)
            tiles.positives(logits, tile.rows, block.columns).neg_()  # now -z l
            loss -= logsigmoid(-logits).sum()

            if differentiate:
                weights = logits.sigmoid_()
                tiles.positives(weights, tile.rows, block.columns).neg_()
                image_grads[tile.rows].addmm_(weights, block.texts)
                block_grads.addmm_(weights.T, tile.images)
                bias_grad += weights.sum()

        if differentiate:
            sums.add(block.columns, block_grads)

    loss = (ranks.sum_(loss) / tiles.global_batch).to(tiles.dtype)
    if not differentiate:
        return loss, None

    # Each of the `size` ranks adds its part to the mean over ranks, hence size / N = 1 / n.
    text_grads, scale_grad = sums.result()
    text_grads.mul_(tiles.scale / tiles.batch)
    return loss, (
        image_grads.div_(tiles.batch),
        text_grads,
        scale_grad / tiles.batch,
        bias_grad / tiles.batch,
    )
