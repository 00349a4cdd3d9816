"""Images scored with part of their patches hidden: one view, or an ensemble of views (FLIP, table 1d)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flipscale.models.masking import complementary_views, visible_count, visible_patches


@dataclass(frozen=True)
class MaskedEncoder:
    """An image encoder that sees only part of the patches.

    Which patches it sees depends on the seed and on the image's place in its set.

    Raises:
        UserError: If the ratio is outside [0, 1).
    """

    encode: Callable[[Tensor, Tensor | None], Tensor]
    """Returns L2-normalised features of images, given the ids of their visible patches, (B, K).

    None in place of the ids shows all patches.
    """
    mask_ratio: float
    """Share of the patches that one view hides."""
    patches: int
    """Patches per image."""
    ensemble: bool = False
    """Whether all views that together show every patch are encoded, instead of only the first one."""
    seed: int = 0

    def __post_init__(self) -> None:
        visible_count(self.patches, self.mask_ratio)

    def features(self, images: Tensor, places: Tensor) -> Tensor:
        """Return L2-normalised features (B, D).

        Those of an ensemble are the mean over the views, normalised again.

        Args:
            images: (B, 3, S, S).
            places: (B,) int64, places of the images in their set.
        """
        if not self.ensemble:
            return self.encode(images, visible_patches(places, self.patches, self.mask_ratio, self.seed))

        views = complementary_views(places, self.patches, self.mask_ratio, self.seed)
        features = torch.stack([self.encode(images, keep).float() for keep in views.unbind(dim=1)])
        return functional.normalize(features.mean(dim=0), dim=1)
