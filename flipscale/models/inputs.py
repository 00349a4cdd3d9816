"""The inputs of the model: one process's part of a batch, with the masks of its patches and tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flipscale.config import Phase
from flipscale.models.masking import visible_patches, visible_tokens
from flipscale.models.packing import is_packable
from flipscale.models.presets import ModelSpec


class Inputs(NamedTuple):
    """The images, the texts or both of B samples, on the device of the model.

    Attributes:
        images: (B, 3, S, S), uint8, or floats that are already normalised; None to encode no images.
        texts: (B, context_length) int64 token ids; None to encode no texts.
        keep: (B, K) int64 ids of the visible patches; None for all.
        keep_tokens: (B, K) int64 slots of the visible tokens, ascending; None for all.
        lengths: The number of tokens up to the end of each text, on the host, if nothing behind it reaches a
            feature and need be computed (see `is_packable`); None to compute all.
    """

    images: Tensor | None = None
    texts: Tensor | None = None
    keep: Tensor | None = None
    keep_tokens: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """The number of samples, B.

        Raises:
            ValueError: If there are neither images nor texts.
        """
        for part in (self.images, self.texts):
            if part is not None:
                return len(part)
        raise ValueError("inputs without images and texts have no size")

    def masked(
        self, positions: Tensor, phase: Phase, spec: ModelSpec, *, padding_id: int, seed: int
    ) -> Inputs:
        """Return these image-text pairs with the masks that a phase draws for them.

        The lengths stay if the text tower of this phase can do with them.

        Args:
            positions: (B,) int64, global sample positions.
            phase: The phase, with its mask ratios.
            spec: The shape of the model in this phase.
            padding_id: Token id of the tokenizer's padding.
            seed: Seed of the run.
        """
        assert self.texts is not None

        keep = visible_patches(positions, spec.vision.patches, phase.mask_ratio, seed)
        keep_tokens = visible_tokens(
            self.texts,
            positions,
            phase.text_mask_ratio,
            seed,
            phase.text_mask,
            spec.text.pool,
            padding_id,
        )
        lengths = self.lengths if is_packable(spec.text, phase.text_mask_ratio) else None
        return self._replace(keep=keep, keep_tokens=keep_tokens, lengths=lengths)

    def to(self, device: torch.device) -> Inputs:
        """Return these inputs with their tensors on a device."""
        return self._changed(lambda tensor: tensor.to(device))

    def split(self, size: int) -> list[Inputs]:
        """Return consecutive parts of at most `size` samples."""
        return [self._part(slice(start, start + size)) for start in range(0, self.size, size)]

    def _part(self, samples: slice) -> Inputs:
        return self._changed(lambda tensor: tensor[samples])._replace(
            lengths=None if self.lengths is None else self.lengths[samples]
        )

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        tensors = (self.images, self.texts, self.keep, self.keep_tokens)
        images, texts, keep, keep_tokens = (None if part is None else change(part) for part in tensors)
        return self._replace(images=images, texts=texts, keep=keep, keep_tokens=keep_tokens)
