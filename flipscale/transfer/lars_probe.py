"""Linear probe as the paper does it: a classifier trained on random views under LARS (FLIP, table 11)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flipscale.distributed.ranks import Ranks
from flipscale.distributed.world import World
from flipscale.third_party import import_timm
from flipscale.transfer.augmented_batches import Passes, Piece, TrainingViews
from flipscale.transfer.classifier import ImageFeatures, Progress, quiet
from flipscale.transfer.classifier_training import Cosine, EpochLog, scaled

_TRUST = 0.001  # of LARS, as in MAE's code
_INITIAL_STD = 0.01  # of the classifier's weights, as in MAE's code


@dataclass(frozen=True)
class LarsRecipe:
    """The paper's; the warm-up keeps its share where there are fewer epochs."""

    passes: Passes = Passes(epochs=90, batch_size=16_384)  # noqa: RUF009
    base_lr: float = 0.01
    """For 256 images: the rate is base_lr x batch_size / 256."""
    momentum: float = 0.9
    warmup: float = 10 / 90
    """Share of the epochs."""


def lars_head(width: int, classes: int, seed: int) -> nn.Sequential:
    """(B, width) to (B, classes): batch norm without scale and shift, then a linear layer (MAE's code)."""
    linear = nn.Linear(width, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.copy_(nn.init.trunc_normal_(linear.weight, std=_INITIAL_STD, generator=generator))
        linear.bias.zero_()
    return nn.Sequential(nn.BatchNorm1d(width, eps=1e-6, affine=False), linear)


def lars(head: nn.Module, momentum: float) -> torch.optim.Optimizer:
    """LARS without weight decay: each matrix's update is as long as a fixed share of the matrix itself."""
    matrices = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
    # timm adapts only what decays, unless it is told; without this it would be plain SGD here.
    groups = [{"params": matrices, "always_adapt": True}, {"params": vectors, "always_adapt": False}]
    return import_timm("timm.optim").Lars(groups, lr=0.0, momentum=momentum, trust_coeff=_TRUST)


def train_lars_head(
    features: ImageFeatures,
    views: TrainingViews,
    classes: int,
    recipe: LarsRecipe,
    world: World,
    progress: Progress = quiet,
) -> nn.Sequential:
    """Train the classifier; every process sees the features of all, and has the same one at the end.

    Raises UserError where it diverges.
    """
    passes = recipe.passes
    ranks = Ranks.of()
    head = lars_head(features.width, classes, passes.seed).to(world.device)
    optimizer = lars(head, recipe.momentum)
    total = passes.epochs * views.steps
    schedule = Cosine(optimizer, scaled(recipe.base_lr, passes), total, recipe.warmup)
    log = EpochLog(passes, views.steps, world)
    for step, batch in enumerate(views.batches()):
        schedule.at(step)
        inputs, labels = _features(features, batch, ranks)
        loss = F.cross_entropy(head(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress("training the probe", step + 1, total)
        log.add(step, loss.detach())
    return head.eval()


@torch.no_grad()
def _features(features: ImageFeatures, batch: Iterator[Piece], ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Features (B, D) and labels (B,) of the whole batch."""
    parts = [(features(images), labels) for images, labels in batch]
    own, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return ranks.gather(own).flatten(0, 1), ranks.gather(labels).flatten(0, 1)
