"""The training loop of a fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flipscale.distributed.world import World
from flipscale.models.flip import FLIP
from flipscale.transfer.augmented_batches import AugmentedBatches, Piece
from flipscale.transfer.classifier_training import CosineSchedule, EpochLog, peak_learning_rate
from flipscale.transfer.finetune_recipe import FinetuneRecipe
from flipscale.transfer.image_features import ProgressCallback, no_progress
from flipscale.transfer.image_mixing import Mixing, combined_seed
from flipscale.transfer.tower_classifier import TowerClassifier, layer_decayed


@dataclass(frozen=True)
class Learner:
    """A classifier and its optimizer, the state of a training."""

    model: TowerClassifier
    optimizer: torch.optim.AdamW


def new_learner(model: FLIP, classes: int, recipe: FinetuneRecipe) -> Learner:
    """Return a fresh classifier on the tower of `model`, and its optimizer."""
    classifier = TowerClassifier(model, classes, recipe.drop_path, recipe.passes.seed)
    return Learner(classifier, layer_decayed(classifier, recipe))


def train_tower(
    learner: Learner,
    batches: AugmentedBatches,
    recipe: FinetuneRecipe,
    world: World,
    *,
    first_epoch: int = 0,
    after_epoch: Callable[[int], None] = lambda epochs: None,
    progress: ProgressCallback = no_progress,
) -> None:
    """Train from an epoch to the end; the result does not depend on earlier interruptions.

    Args:
        learner: The classifier and its optimizer, as they were after `first_epoch` epochs.
        batches: Augmented images of the training set.
        recipe: Settings of the training.
        world: The processes; all of them call this function together.
        first_epoch: Number of epochs that are done already.
        after_epoch: Called after each epoch, on every process, with the number of epochs done.
        progress: Receives the optimizer steps done.

    Raises:
        UserError: If the training diverges.
    """
    model = learner.model
    passes = recipe.passes
    steps = batches.steps
    total = passes.epochs * steps

    network: nn.Module = model
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        network = DistributedDataParallel(model, device_ids=devices)

    mixing = Mixing(recipe, model, world.rank)
    peak = peak_learning_rate(recipe.base_lr, passes)
    schedule = CosineSchedule(learner.optimizer, peak, total, recipe.warmup)
    log = EpochLog(passes, steps, world)

    network.train()
    for step, batch in enumerate(batches.pieces(first_epoch), first_epoch * steps):
        # The seed decides which branches are dropped.
        torch.manual_seed(combined_seed(passes.seed, step, world.rank))
        schedule.set_step(step)
        learner.optimizer.zero_grad()
        loss = _accumulate(network, batch, mixing, step, passes.batch_size // world.size)
        learner.optimizer.step()

        progress("fine-tuning", step + 1, total)
        log.add(step, loss)
        # Last: an epoch is saved only if its loss was finite.
        if (step + 1) % steps == 0:
            after_epoch((step + 1) // steps)
    network.eval()


def _accumulate(network: nn.Module, batch: Iterator[Piece], mixing: Mixing, step: int, share: int) -> Tensor:
    """Add up the gradients of this process's `share` images, and return their mean loss.

    Processes average their gradients at the last piece.
    """
    loss = torch.zeros(())
    done = 0
    for number, (images, labels) in enumerate(batch):
        done += len(labels)
        inputs, targets = mixing(images, labels, step, number)
        waits = done < share and isinstance(network, DistributedDataParallel)

        with cast("DistributedDataParallel", network).no_sync() if waits else nullcontext():
            piece_loss = mixing.loss(network(inputs), targets) * (len(labels) / share)
            piece_loss.backward()
        loss = loss.to(piece_loss.device) + piece_loss.detach()
    return loss
