"""Captions without what is behind their ends: the tokens of a batch in one row, caption after caption.

CLIP's text tower is causal, and its feature is the output at the end-of-text token. Nothing behind this token
reaches the feature, so that it need not be computed. Norms and linear layers work on each token by itself and
take the row as it is; only attention needs to know which tokens are of one caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flipscale.models.presets import TextSpec

_SHAPES = 32
"""The most lengths of a row per size of batch: torch compiles a block once for each length that occurs."""
_MULTIPLE = 8
"""Lengths are multiples of it, as matrix products on GPUs want them."""


class Packing(NamedTuple):
    """Which token of B captions is where in a row of N."""

    slots: Tensor
    """(N,) int64: caption x length + place of each token; captions x length where the row is only filled."""
    tokens: Tensor
    """(N,) int64: the same slots, but that of the last token, which exists, where the row is only filled.

    A field, not a property: torch 2.9 cannot compile its computation within a block that recomputes."""
    ends: Tensor
    """(B,) int64 places in the row of the tokens whose outputs become the features."""
    captions: int
    """B."""
    length: int
    """Tokens of a caption with its padding."""

    @classmethod
    def of(cls, texts: Tensor, lengths: Sequence[int]) -> Packing:
        """Return the packing of captions, without a wait of the host for the device.

        Args:
            texts: (B, context_length) int64 token ids; a caption ends with its largest id.
            lengths: The B numbers of tokens up to that end, which the host knows.
        """
        captions, length = texts.shape
        rows = row_length(sum(lengths), captions, length)
        ends = texts.argmax(dim=1)

        # Each token before the end of its caption goes to the next place, all others to one behind the row.
        kept = (torch.arange(length, device=texts.device) <= ends[:, None]).flatten()
        places = torch.where(kept, kept.cumsum(0) - 1, rows)
        slots = texts.new_full((rows + 1,), captions * length)
        slots = slots.scatter(0, places, torch.arange(captions * length, device=texts.device))[:rows]
        tokens = slots.clamp(max=captions * length - 1)
        return cls(slots, tokens, (ends + 1).cumsum(0) - 1, captions, length)

    def packed(self, padded: Tensor) -> Tensor:
        """Return the row of (B, length, width), (N, width)."""
        return padded.flatten(0, 1).index_select(0, self.tokens)

    def padded(self, row: Tensor) -> Tensor:
        """Return the captions of a row of (N, width), (B, length, width), with zeros behind their ends."""
        cells = self.captions * self.length
        # Whatever fills the row goes to one more cell. Others are zeros: 0 x NaN would reach the gradients.
        whole = row.new_zeros(cells + 1, row.shape[-1]).index_put((self.slots,), row)
        return whole[:cells].unflatten(0, (self.captions, self.length))


def is_packable(text: TextSpec, mask_ratio: float) -> bool:
    """Return whether nothing behind the ends of captions reaches their features, and no token is masked."""
    return text.causal and text.pool == "argmax" and mask_ratio == 0.0


def row_length(tokens: int, captions: int, length: int) -> int:
    """Return the length of the row that holds so many tokens, at most that of all captions with padding.

    Args:
        tokens: Tokens up to the ends of the captions.
        captions: The number of captions.
        length: Tokens of a caption with its padding.
    """
    cells = captions * length
    step = _MULTIPLE * -(-cells // (_SHAPES * _MULTIPLE))
    return min(cells, -(-tokens // step) * step)
