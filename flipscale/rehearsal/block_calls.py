"""The calls of transformer blocks in a step, and one block by itself that is called in the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from flipscale.models.blocks import ResidualBlock
from flipscale.models.packing import Packing
from flipscale.models.presets import TowerSpec


@dataclass(frozen=True)
class BlockCall:
    """What the cost of a block's forward and backward depends on."""

    tower: TowerSpec
    """The shape of a tower of one such block."""
    causal: bool
    shape: tuple[int, ...]
    """(B, T, width) of the residual stream, or (N, width) of packed texts."""
    packed: tuple[int, int] | None
    """B and T of packed texts."""
    stream_dtype: torch.dtype
    weight_dtype: torch.dtype
    autocast: torch.dtype | None
    """The dtype of autocast, or None without it."""
    backward: bool
    """Whether gradients are computed."""
    recompute: Callable[..., Tensor] | None
    """`ResidualBlock.recompute`."""

    @classmethod
    def of(cls, block: ResidualBlock, x: Tensor, packing: Packing | None) -> BlockCall:
        """Return the call of a block whose weights are gathered.

        Args:
            block: The block.
            x: The residual stream, (B, T, width) or (N, width).
            packing: That of packed texts.
        """
        kind = x.device.type
        tower = TowerSpec(
            width=x.shape[-1],
            layers=1,
            heads=block.attn.heads,
            norm_eps=block.ln_1.eps,
            gelu=block.mlp.gelu,
        )
        return cls(
            tower,
            block.attn.causal,
            tuple(x.shape),
            None if packing is None else (packing.captions, packing.length),
            x.dtype,
            block.ln_1.weight.dtype,
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
            torch.is_grad_enabled(),
            block.recompute,
        )

    def make(self, device: torch.device) -> LoneBlock:
        """Return a block by itself for this call, without initial values.

        Args:
            device: The device of its weights and of the residual stream.
        """
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.weight_dtype)
        try:
            with device:
                block = ResidualBlock(self.tower, self.causal)
        finally:
            torch.set_default_dtype(before)
        block.recompute = self.recompute
        x = torch.empty(self.shape, dtype=self.stream_dtype, device=device, requires_grad=self.backward)
        packing: Packing | None = None
        if self.packed is not None:
            places = torch.zeros(self.shape[0], dtype=torch.int64, device=device)
            packing = Packing(places, places, places[: self.packed[0]], *self.packed)
        return LoneBlock(self, block, x, packing)


class LoneBlock:
    """A block by itself with its input.

    Args:
        call: How it is called.
        block: The block.
        x: The residual stream.
        packing: That of packed texts.

    Attributes:
        block: The block.
    """

    def __init__(self, call: BlockCall, block: ResidualBlock, x: Tensor, packing: Packing | None) -> None:
        self._call = call
        self.block = block
        self._x = x
        self._packing = packing
        self._gradient = torch.empty_like(x)

    def run(self) -> None:
        """Run the forward, and the backward if the call has one."""
        call = self._call
        kind = self._x.device.type
        autocast = torch.autocast(kind, call.autocast, enabled=call.autocast is not None)
        with autocast, torch.set_grad_enabled(call.backward):
            y = self.block(self._x, self._packing)
        if call.backward:
            y.backward(self._gradient)


@contextmanager
def counted_block_calls() -> Generator[Counter[BlockCall]]:
    """Count the calls of blocks of all models; yields the counts, which grow inside of the context."""
    counts: Counter[BlockCall] = Counter()
    forward = ResidualBlock.forward

    def counting(block: ResidualBlock, x: Tensor, packing: Packing | None = None) -> Tensor:
        counts[BlockCall.of(block, x, packing)] += 1
        return forward(block, x, packing)

    with mock.patch.object(ResidualBlock, "forward", counting):
        yield counts
