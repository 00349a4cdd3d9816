"""Mixup and cutmix of the images of a piece, reproducible whatever was drawn before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from flipscale.third_party import import_timm
from flipscale.transfer.finetune_recipe import FinetuneRecipe
from flipscale.transfer.tower_classifier import TowerClassifier


class Mixing:
    """Mixup or cutmix, with equal chance, of each piece with itself in reverse order.

    Attributes:
        loss: Maps logits and class shares, both (B, classes), to the mean cross-entropy.
    """

    def __init__(self, recipe: FinetuneRecipe, model: TowerClassifier, rank: int) -> None:
        """Set up timm's mixing for the images and classes of `model` on the process `rank`."""
        self._model = model
        self._rank = rank
        self._seed = recipe.passes.seed
        self._mixup = import_timm("timm.data.mixup").Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            num_classes=model.head.out_features,
        )
        self.loss: Callable[[Tensor, Tensor], Tensor] = import_timm("timm.loss").SoftTargetCrossEntropy()

    def __call__(self, images: Tensor, labels: Tensor, step: int, piece: int) -> tuple[Tensor, Tensor]:
        """Return normalised, mixed images and class shares (B, classes).

        Args:
            images: uint8 (B, 3, S, S), with even B.
            labels: int64 (B,).
            step: Number of the optimizer step; with `piece`, it decides what is drawn.
            piece: Number of the piece in the batch.
        """
        np.random.seed(combined_seed(self._seed, step, self._rank, piece) % 2**32)
        return self._mixup(self._model.normalized(images), labels)


def combined_seed(*parts: int) -> int:
    """Return a seed of 63 bits that depends on all of the parts."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
