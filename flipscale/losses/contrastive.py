"""Exact InfoNCE over the global batch, in memory of batch x tile.

Let l[i, j] = scale * image_i . text_j over the N pairs of all ranks. The loss is the mean over the pairs of
both cross-entropies, (logsumexp_j l[i, j] - l[i, i]) / 2 + (logsumexp_i l[i, j] - l[j, j]) / 2 (FLIP,
section 3; CLIP, figure 3). Its derivative by l[i, j] is (p[i, j] + q[i, j] - 2 [i = j]) / 2N, with p the
softmax of row i and q that of column j. The forward pass keeps the softmax statistics of each row and
column, and the backward pass computes the logits again.

A rank has the rows of its own images and the gathered texts of all ranks. A tile of logits is computed once
in the forward pass, for both directions, and once in the backward pass, for both gradients. These are four
products of the size of the whole matrix, compared with six for two separate directions. Besides the gathered
texts, only the partial column sums (N numbers) and the text gradients cross ranks. These are reduce-scattered
block by block, each while the next block is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from flipscale.distributed.ranks import Ranks
from flipscale.losses.text_gradients import TextGradients
from flipscale.losses.tiles import LogitTiles, checked_tile


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    tile: int = 512,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return the mean InfoNCE loss over the pairs of all ranks, in nats.

    Gradients are scaled for strategies that average them over ranks (DDP, FSDP, ZeRO): the mean over the
    ranks of a parameter's gradient is the gradient of the full batch, `logit_scale` included.

    Args:
        image_features: (n, d), L2-normalised; n is the same on every rank.
        text_features: (n, d), of the same dtype; row i belongs to image i.
        logit_scale: 0-d or (1,), the factor itself (exp of the learned parameter).
        tile: Image rows computed at a time; clamped to n.
        group: The ranks that share the batch; default: the default group, or this process by itself.

    Returns:
        0-d fp32 (fp64 for fp64 features), the same on every rank. All arithmetic is at least fp32, also under
        autocast. The backward pass communicates, so all ranks must run it; it cannot be differentiated twice.

    Raises:
        UserError: If `tile` is below 1.
        ValueError: If the features differ in shape or dtype, or are empty.
    """
    tile = checked_tile(image_features, text_features, tile)
    apply = cast("Callable[..., Tensor]", _ContrastiveLoss.apply)
    return apply(image_features, text_features, logit_scale, Ranks.of(group), tile)


class _ContrastiveLoss(torch.autograd.Function):
    """The loss as one operation; it saves its inputs, the gathered texts and 2 (n + N) softmax statistics."""

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]: torch's signature is open
        ctx: Any, images: Tensor, texts: Tensor, logit_scale: Tensor, ranks: Ranks, tile: int
    ) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            tiles = LogitTiles(images, ranks.gather(texts), logit_scale.reshape(()), ranks, tile)
            loss, statistics = _forward(tiles)
        ctx.save_for_backward(images, tiles.texts, logit_scale, *statistics)
        ctx.ranks, ctx.tile = ranks, tile
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]: torch's signature is open
        ctx: Any, loss_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        images, texts, logit_scale, *statistics = ctx.saved_tensors
        with torch.autocast(images.device.type, enabled=False):
            tiles = LogitTiles(images, texts, logit_scale.reshape(()), ctx.ranks, ctx.tile)
            image_grads, text_grads, scale_grad = _backward(tiles, statistics, loss_grad)
        return (
            image_grads.to(images.dtype),
            text_grads.to(texts.dtype),
            scale_grad.to(logit_scale.dtype).reshape(logit_scale.shape),
            None,
            None,
        )


def _forward(tiles: LogitTiles) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return the loss, and peak and sum of exp(logit - peak) of each row (n) and each column (size, n).

    Peak and sum stay separate, not combined to a log-sum-exp. If a pair fits well, p is 1 - tiny, and the
    rounding of a log-sum-exp near 100 would be larger than the tiny part.
    """
    ranks = tiles.ranks
    row_peak = tiles.images.new_full((tiles.batch,), -torch.inf, dtype=tiles.dtype)
    row_sum = torch.zeros_like(row_peak)
    column_peak = row_peak.repeat(ranks.size, 1)
    column_sum = torch.zeros_like(column_peak)
    positive = torch.empty_like(row_peak)

    for block in tiles.blocks():
        peak = column_peak[:, block.columns].flatten()
        total = column_sum[:, block.columns].flatten()
        for tile in tiles.tiles(block):
            rows = tile.rows
            row_peak[rows], row_sum[rows] = _fold(row_peak[rows], row_sum[rows], tile.logits, dim=1)
            peak, total = _fold(peak, total, tile.logits, dim=0)
            matching = tiles.positives(tile.logits, rows, block.columns)
            first = max(rows.start, block.columns.start)
            positive[first : first + len(matching)] = matching
        column_peak[:, block.columns] = peak.unflatten(0, (ranks.size, -1))
        column_sum[:, block.columns] = total.unflatten(0, (ranks.size, -1))

    local_peak = column_peak.clone()
    ranks.max_(column_peak)
    ranks.sum_(column_sum.mul_((local_peak - column_peak).exp_()))

    own = ranks.index
    row_loss = (row_peak - positive) + row_sum.log()
    column_loss = (column_peak[own] - positive) + column_sum[own].log()
    loss = ranks.sum_((row_loss + column_loss).sum()) / (2 * tiles.global_batch)
    return loss, (row_peak, row_sum, column_peak, column_sum)


def _fold(peak: Tensor, total: Tensor, logits: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Add a tile to the running peak and sum of exp(logit - peak) along `dim`."""
    new_peak = torch.maximum(peak, logits.amax(dim))
    part = (logits - new_peak.unsqueeze(dim)).exp_().sum(dim)
    return new_peak, total * (peak - new_peak).exp_() + part


def _backward(
    tiles: LogitTiles, statistics: list[Tensor], loss_grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of this rank's images and texts (n, d), and its part of the scale's (0-d)."""
    row_peak, row_sum, column_peak, column_sum = statistics
    image_grads = torch.zeros_like(tiles.images, dtype=tiles.dtype)
    sums = TextGradients(tiles)

    for block in tiles.blocks():
        peak = column_peak[:, block.columns].flatten()
        share = column_sum[:, block.columns].flatten().reciprocal()
        block_grads = torch.zeros_like(block.texts)
        for tile in tiles.tiles(block):
            rows = tile.rows
            weights = (tile.logits - row_peak[rows, None]).exp_().div_(row_sum[rows, None])
            weights.addcmul_(tile.logits.sub_(peak).exp_(), share)
            tiles.positives(weights, rows, block.columns).sub_(2)
            image_grads[rows].addmm_(weights, block.texts)
            block_grads.addmm_(weights.T, tile.images)
        sums.add(block.columns, block_grads)
    text_grads, scale_grad = sums.result()

    # Each of the `size` ranks adds its part to the mean over ranks, hence size / 2N = 1 / 2n.
    factor = loss_grad / (2 * tiles.batch)
    return image_grads.mul_(factor), text_grads.mul_(factor * tiles.scale), scale_grad * factor
