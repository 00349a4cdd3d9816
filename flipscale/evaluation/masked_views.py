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
    """What of an image is shown: a function of the seed and of the image's place in its set.

    Raises UserError for a ratio outside [0, 1).
    """

    encode: Callable[[Tensor, Tensor | None], Tensor]
    """L2-normalised features of images, given the ids of their visible patches, (B, K); None for all."""
    mask_ratio: float
    patches: int  # of an image
    ensemble: bool = False  # all views that together show every patch, instead of the first one alone
    seed: int = 0

    def __post_init__(self) -> None:
        visible_count(self.patches, self.mask_ratio)

    def features(self, images: Tensor, places: Tensor) -> Tensor:
        """L2-normalised features (B, D); of an ensemble, the mean over the views, normalised again.

        Args:
            images: (B, 3, S, S).
            places: (B,) int64, of the images in their set.
        """
        if not self.ensemble:
            return self.encode(images, visible_patches(places, self.patches, self.mask_ratio, self.seed))
        views = complementary_views(places, self.patches, self.mask_ratio, self.seed)
        seen = torch.stack([self.encode(images, keep).float() for keep in views.unbind(dim=1)])
        return functional.normalize(seen.mean(dim=0), dim=1)
