"""The logits of this rank's images against the texts of all ranks, one tile at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from flipscale.distributed.ranks import Ranks
from flipscale.errors import UserError

# Columns of one tile. On a CPU a tile of 512 x 2,048 fp32 (4 MiB) stays in the cache between its passes; a
# GPU wants more work per kernel, and 512 x 8,192 (16 MiB) still fits the second-level cache of an A100 or
# H100.
_COLUMNS = {"cuda": 8192}
_COLUMNS_ELSEWHERE = 2048


@dataclass(frozen=True)
class Tile:
    """The logits (r, c) = images (r, d) @ scaled texts (c, d) of the local image rows `rows`."""

    rows: slice
    images: Tensor
    logits: Tensor


@dataclass(frozen=True)
class ColumnBlock:
    """The texts `columns` of every rank, times the logit scale: (size * k, d), rank after rank."""

    columns: slice
    texts: Tensor


@dataclass(frozen=True)
class LogitTiles:
    """The logits scale * images @ texts.T, which are never held as a whole.

    The images (n, d) are those of this rank, the texts (size, n, d) those of all ranks. Arithmetic is fp32
    for fp32, bf16 and fp16 features, and fp64 for fp64 ones. Local row i and column i of this rank's own
    texts are the matching pair.
    """

    images: Tensor
    texts: Tensor
    scale: Tensor
    ranks: Ranks
    tile: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return torch.promote_types(self.images.dtype, torch.float32)

    @property
    def batch(self) -> int:
        """Pairs of this rank, n."""
        return self.images.shape[0]

    @property
    def global_batch(self) -> int:
        """Pairs of all ranks, N."""
        return self.batch * self.ranks.size

    def blocks(self) -> Iterator[ColumnBlock]:
        """Yield all columns in blocks of k texts of every rank, so that gradients reduce-scatter evenly."""
        width = _COLUMNS.get(self.images.device.type, _COLUMNS_ELSEWHERE) // self.ranks.size
        for columns in _slices(self.batch, max(1, width)):
            texts = self.texts[:, columns].to(self.dtype) * self.scale.to(self.dtype)
            yield ColumnBlock(columns, texts.flatten(0, 1))

    def tiles(self, block: ColumnBlock) -> Iterator[Tile]:
        """Yield the tiles of one column block, from the first local image to the last."""
        for rows in _slices(self.batch, self.tile):
            images = self.images[rows].to(self.dtype)
            yield Tile(rows, images, images @ block.texts.T)

    def positives(self, values: Tensor, rows: slice, columns: slice) -> Tensor:
        """Return the entries of the matching pairs in a tile (r, size * k): a view, possibly empty."""
        own = by_rank(values, 1, self.ranks.size)[:, self.ranks.index]
        return own.diagonal(rows.start - columns.start)

    def own_texts(self, columns: slice) -> Tensor:
        """Return this rank's own texts of a column block (k, d), unscaled."""
        return self.texts[self.ranks.index, columns].to(self.dtype)


def by_rank(values: Tensor, dim: int, ranks: int) -> Tensor:
    """Return a view whose dimension `dim`, rank after rank, is split into (ranks, the rest)."""
    unflatten = cast("Callable[..., Tensor]", values.unflatten)
    return unflatten(dim, (ranks, -1))


def checked_tile(image_features: Tensor, text_features: Tensor, tile: int) -> int:
    """Check the features of the pairs, and return the tile clamped to the batch.

    Raises:
        UserError: If the tile has no rows.
        ValueError: If the features differ in shape or dtype, or are empty.
    """
    if image_features.ndim != 2 or image_features.shape != text_features.shape or not len(image_features):
        raise ValueError(
            "the contrastive losses need image and text features of one shape (n, d) with n >= 1, "
            f"not {tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )

    if image_features.dtype != text_features.dtype:
        raise ValueError(
            "the contrastive losses need image and text features of one dtype, "
            f"not {image_features.dtype} and {text_features.dtype}"
        )

    if tile < 1:
        raise UserError(f"the loss cannot work in tiles of {tile} rows: set a tile of at least 1")
    return min(tile, len(image_features))


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
