"""The patches and tokens that the encoders see: a pure function of (seed, global sample position)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from flipscale.errors import UserError

TextMask = Literal["random", "prioritised"]

_FIRST_TOKEN = 1 << 32
"""The number of the first token slot in the noise. Patches start at 0, so that the masks are independent."""
_WORD = 1 << 64
_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def visible_count(patches: int, mask_ratio: float) -> int:
    """Return the number of patches kept: floor(patches x (1 - mask_ratio)), at least one (section 3.1).

    Args:
        patches: Patches of an image.
        mask_ratio: Share of them to hide, in [0, 1).

    Raises:
        UserError: If the ratio is outside [0, 1).
    """
    if not 0.0 <= mask_ratio < 1.0:
        raise UserError(f"mask_ratio {mask_ratio} is outside [0, 1); 0.5 leaves half of the patches visible")
    # 100 x (1 - 0.9) is 9.999...98 in floating point and means 10.
    return max(1, math.floor(patches * (1.0 - mask_ratio) + 1e-9))


def visible_patches(positions: Tensor, patches: int, mask_ratio: float, seed: int) -> Tensor | None:
    """Draw the visible patches of each sample: those with the smallest noise (paper, section 3.1).

    The noise of a patch is hash64(seed, position, patch), computed on the device of `positions` without a
    host sync. A mask is thus the same in a recomputation, after a restart, and on any number of processes.

    Args:
        positions: (B,) int64, global sample positions.
        patches: Patches of an image.
        mask_ratio: Share of them to hide, in [0, 1).
        seed: Seed of the run.

    Returns:
        (B, K) int64 ids of the visible patches, ascending in each row; None if nothing is hidden.
    """
    kept = visible_count(patches, mask_ratio)
    if mask_ratio == 0.0:
        return None

    smallest: Tensor = _noise(positions, patches, seed).topk(kept, dim=1, largest=False, sorted=False).indices
    return smallest.sort(dim=1).values


def complementary_views(positions: Tensor, patches: int, mask_ratio: float, seed: int) -> Tensor:
    """Split the patches of each sample into views that together show all of them (paper, table 1d).

    A view has K = `visible_count` patches, and there are V = ceil(patches / K) views, the fewest that can
    show everything: 2 at a ratio of 0.5 and 4 at 0.75 if these divide the patches. Otherwise patches of the
    first view fill up the last one, so that all have one shape: 49 patches at 0.5 are views of 24, 24, and
    1 + 23. The first view is the one that `visible_patches` draws.

    Args:
        positions: (B,) int64, global sample positions.
        patches: Patches of an image.
        mask_ratio: Share of them to hide in a view, in [0, 1).
        seed: Seed of the run.

    Returns:
        (B, V, K) int64 ids of the visible patches, ascending in each view.
    """
    kept = visible_count(patches, mask_ratio)
    views = -(-patches // kept)
    order = _noise(positions, patches, seed).argsort(dim=1, stable=True)
    ranks = torch.arange(views * kept, device=positions.device) % patches
    return order[:, ranks].reshape(len(positions), views, kept).sort(dim=2).values


def visible_tokens(
    tokens: Tensor,
    positions: Tensor,
    mask_ratio: float,
    seed: int,
    kind: TextMask,
    pool: Literal["first", "argmax"],
    padding_id: int,
) -> Tensor | None:
    """Draw the slots of each caption that the text encoder sees (paper, table 1c).

    The noise is that of `visible_patches`, for slots. Every slot is equally likely, except that the slot
    whose output becomes the feature always stays: without it there would be no feature. The paper names no
    such slot. "prioritised" hides padding before any other token.

    Args:
        tokens: (B, T) int64 ids. The ids equal to `padding_id` at the end of a caption are its padding.
            (CLIP's "!" has the id of its padding, but is never the last token.)
        positions: (B,) int64, global sample positions.
        mask_ratio: Share of the slots to hide, in [0, 1).
        seed: Seed of the run.
        kind: The kind of the mask.
        pool: The slot that stays, as in `TextSpec`.
        padding_id: Token id of the tokenizer's padding.

    Returns:
        (B, K) int64 slots, K = `visible_count`, ascending in each row; None if nothing is hidden.
    """
    length = tokens.shape[1]
    kept = visible_count(length, mask_ratio)
    if mask_ratio == 0.0:
        return None

    slots = torch.arange(length, device=tokens.device)
    # 62 bits, so that a class goes before all noise: the pooled slot, then tokens, then padding.
    rank = _shift_right(hash64(seed, positions[:, None], slots + _FIRST_TOKEN), 2)
    if kind == "prioritised":
        last = (slots * (tokens != padding_id)).amax(dim=1, keepdim=True)
        rank = rank + (slots > last) * (1 << 62)

    pooled = tokens.argmax(dim=1, keepdim=True) if pool == "argmax" else torch.zeros_like(tokens[:, :1])
    rank = rank.scatter(1, pooled, -1)
    smallest: Tensor = rank.topk(kept, dim=1, largest=False, sorted=False).indices
    return smallest.sort(dim=1).values


def hidden_patches(keep: Tensor, patches: int) -> Tensor:
    """Return the ids of the patches that are not visible.

    Args:
        keep: (B, K) int64 ids of the visible patches.
        patches: Patches of an image.

    Returns:
        (B, patches - K) int64 ids, ascending in each row.
    """
    visible = torch.zeros(len(keep), patches, dtype=torch.uint8, device=keep.device).scatter_(1, keep, 1)
    return visible.argsort(dim=1, stable=True)[:, : patches - keep.shape[1]]


def _noise(positions: Tensor, patches: int, seed: int) -> Tensor:
    """Return (B, patches) int64 noise, whose signed order is the order of the hash's 64 bits."""
    ids = torch.arange(patches, device=positions.device)
    # int64 compares as signed: flipping the top bit gives it the order of uint64.
    return hash64(seed, positions[:, None], ids) ^ _signed(1 << 63)


def hash64(seed: int, first: Tensor, *rest: Tensor) -> Tensor:
    """Hash a host integer and int64 tensors with the chained finaliser of splitmix64.

    Args:
        seed: The host integer.
        first: An int64 tensor.
        *rest: Other int64 tensors, broadcast against the first.

    Returns:
        int64 tensor with the bits of `flipscale.data.order.lanes.hash64`, which is uint64.
    """
    state = _mix((first ^ _signed(_mix_host((seed + _INCREMENT) % _WORD))) + _signed(_INCREMENT))
    for word in rest:
        state = _mix((state ^ word) + _signed(_INCREMENT))
    return state


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(_MULTIPLIERS[0])
    z = (z ^ _shift_right(z, 27)) * _signed(_MULTIPLIERS[1])
    return z ^ _shift_right(z, 31)


def _mix_host(z: int) -> int:
    z = (z ^ (z >> 30)) * _MULTIPLIERS[0] % _WORD
    z = (z ^ (z >> 27)) * _MULTIPLIERS[1] % _WORD
    return z ^ (z >> 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift logically: torch's own shift of int64 copies the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """Return the int64 with the bits of this uint64."""
    return word - _WORD if word >= 1 << 63 else word
