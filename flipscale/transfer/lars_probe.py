"""Linear probe as in the FLIP paper: a classifier trained on random views with LARS (FLIP, table 11)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flipscale.distributed.ranks import Ranks
from flipscale.distributed.world import World
from flipscale.third_party import import_timm
from flipscale.transfer.augmented_batches import AugmentedBatches, Piece
from flipscale.transfer.classifier_training import CosineSchedule, EpochLog, peak_learning_rate
from flipscale.transfer.image_features import ImageFeatures, ProgressCallback, no_progress
from flipscale.transfer.passes import Passes

_TRUST = 0.001  # trust coefficient of LARS, as in MAE's code
_INITIAL_STD = 0.01  # of the classifier's weights, as in MAE's code


@dataclass(frozen=True)
class LarsRecipe:
    """The paper's recipe; with fewer epochs, the warm-up keeps its share."""

    passes: Passes = Passes(epochs=90, batch_size=16_384)  # noqa: RUF009
    base_lr: float = 0.01
    """Learning rate for 256 images; the peak rate is base_lr x batch_size / 256."""
    momentum: float = 0.9
    warmup: float = 10 / 90
    """Share of the epochs that the warm-up takes."""


def lars_head(width: int, classes: int, seed: int) -> nn.Sequential:
    """Return a fresh classifier, (B, width) to (B, classes).

    It is batch norm without scale and shift, then a linear layer (MAE's code).
    """
    linear = nn.Linear(width, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.copy_(nn.init.trunc_normal_(linear.weight, std=_INITIAL_STD, generator=generator))
        linear.bias.zero_()

    return nn.Sequential(nn.BatchNorm1d(width, eps=1e-6, affine=False), linear)


def lars(head: nn.Module, momentum: float) -> torch.optim.Optimizer:
    """Return LARS without weight decay: the update of a matrix has a fixed share of the matrix's length."""
    matrices = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in head.parameters() if parameter.ndim <= 1]

    # timm adapts only parameters with weight decay unless `always_adapt` is set. Here nothing decays, so that
    # LARS would be plain SGD without it.
    groups = [{"params": matrices, "always_adapt": True}, {"params": vectors, "always_adapt": False}]
    return import_timm("timm.optim").Lars(groups, lr=0.0, momentum=momentum, trust_coeff=_TRUST)


def train_lars_head(
    features: ImageFeatures,
    batches: AugmentedBatches,
    classes: int,
    recipe: LarsRecipe,
    world: World,
    progress: ProgressCallback = no_progress,
) -> nn.Sequential:
    """Train the classifier; every process computes with the features of all processes.

    Returns:
        The classifier in evaluation mode, the same on every process.

    Raises:
        UserError: If the training diverges.
    """
    passes = recipe.passes
    ranks = Ranks.of()
    head = lars_head(features.width, classes, passes.seed).to(world.device)
    optimizer = lars(head, recipe.momentum)

    total = passes.epochs * batches.steps
    peak = peak_learning_rate(recipe.base_lr, passes)
    schedule = CosineSchedule(optimizer, peak, total, recipe.warmup)
    log = EpochLog(passes, batches.steps, world)

    for step, batch in enumerate(batches.pieces()):
        schedule.set_step(step)
        inputs, labels = _whole_batch(features, batch, ranks)
        loss = F.cross_entropy(head(inputs), labels)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        progress("training the probe", step + 1, total)
        log.add(step, loss.detach())

    return head.eval()


@torch.no_grad()
def _whole_batch(features: ImageFeatures, batch: Iterator[Piece], ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Return the features (B, D) and the labels (B,) of the batch of all processes."""
    parts = [(features(images), labels) for images, labels in batch]
    own_features, own_labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return ranks.gather(own_features).flatten(0, 1), ranks.gather(own_labels).flatten(0, 1)
