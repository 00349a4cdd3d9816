"""The gradients of this rank's texts, summed over all ranks while the next block of columns is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from flipscale.distributed.ranks import Pending
from flipscale.losses.tiles import LogitTiles, by_rank


class TextGradients:
    """The gradients of this rank's texts, before their common factor, and what follows from them.

    At most two blocks are held: one whose sum is under way, and the one that is computed meanwhile.

    Args:
        tiles: The logits.
    """

    def __init__(self, tiles: LogitTiles) -> None:
        self._tiles = tiles
        self._texts = torch.empty_like(tiles.images, dtype=tiles.dtype)
        self._scale = self._texts.new_zeros(())
        self._started: tuple[slice, Pending] | None = None

    def add(self, columns: slice, gradients: Tensor) -> None:
        """Start to sum the gradients of one block over the ranks, and finish the block before.

        Args:
            columns: The texts of each rank in the block, k.
            gradients: This rank's part of their gradients, (size * k, d). It must not change afterwards.
        """
        ranks = self._tiles.ranks
        started = ranks.start_scatter_sum(by_rank(gradients, 0, ranks.size))
        self._finish()
        self._started = columns, started
        if started.work is None:
            self._finish()  # nothing to wait for: the block need not be held any longer

    def result(self) -> tuple[Tensor, Tensor]:
        """Return the gradients of this rank's texts (n, d), and its part of the logit scale's (0-d)."""
        self._finish()
        return self._texts, self._scale

    def _finish(self) -> None:
        if self._started is None:
            return

        columns, started = self._started
        self._started = None
        own = started.wait()
        self._texts[columns] = own
        self._scale += (own * self._tiles.own_texts(columns)).sum()
