"""Fine-tuning the image tower with a linear classifier on it (FLIP, table 12; otherwise as MAE's code)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flipscale.distributed.world import World
from flipscale.models.blocks import ResidualBlock
from flipscale.models.flip import FLIP
from flipscale.models.vision import VisionTransformer
from flipscale.third_party import import_timm
from flipscale.transfer.augmented_batches import Passes, Piece, TrainingViews
from flipscale.transfer.classifier import Progress, half_precision, quiet
from flipscale.transfer.classifier_training import Cosine, EpochLog, scaled

_INITIAL_STD = 2e-5  # of the classifier's weights, as in MAE's code


@dataclass(frozen=True)
class FinetuneRecipe:
    """The paper's, for ViT-L and ViT-H; the warm-up keeps its share where there are fewer epochs."""

    passes: Passes = Passes(epochs=50, batch_size=1024)  # noqa: RUF009
    base_lr: float = 5e-5
    """For 256 images: the rate of the last layer is base_lr x batch_size / 256."""
    warmup: float = 5 / 50
    """Share of the epochs."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 0.75
    """Of the learning rate, from each block to the one before it."""
    drop_path: float = 0.2
    """Chance to leave out the last block's branches; it grows linearly from 0 in the first block."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAug(9, 0.5), as timm and MAE's code write it."""
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0


class Classifier(nn.Module):
    """The image tower without its projection, and a linear layer on the pooled feature."""

    def __init__(self, model: FLIP, classes: int, drop_path: float, seed: int) -> None:
        super().__init__()
        self.visual = model.visual
        self.visual.proj.requires_grad_(False)
        self.head = nn.Linear(model.spec.vision.width, classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            nn.init.trunc_normal_(self.head.weight, std=_INITIAL_STD, generator=generator)
            self.head.bias.zero_()
        self.head.to(self.visual.proj.device)
        self.register_buffer("mean", torch.tensor(model.spec.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(model.spec.std)[:, None, None], persistent=False)
        self.to(self.visual.proj.device)
        _drop_paths(self.visual, drop_path)

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes), fp32, of images (B, 3, S, S): uint8, or floats that are normalised already."""
        with half_precision(images.device):
            pooled = self.visual.pooled(self.visual.tokens(images))
        return self.head(pooled.float())

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 images as the floats that `forward` takes; mixing needs them."""
        return (images.float() / 255 - self.mean) / self.std

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The tower's layers, as timm asks for them: embeddings, each block, and all else as the last."""
        return {
            "stem": r"^visual\.(?:conv1|class_embedding|positional_embedding|ln_pre)",
            "blocks": r"^visual\.transformer\.resblocks\.(\d+)",
        }


def _drop_paths(tower: VisionTransformer, last: float) -> None:
    """Drop branches of the blocks while training; hooks leave the names of the weights as they are."""
    blocks = list(tower.transformer.resblocks)
    for block, chance in zip(blocks, np.linspace(0, last, len(blocks)).tolist(), strict=True):
        assert isinstance(block, ResidualBlock)
        for branch in (block.attn, block.mlp):
            branch.register_forward_hook(_dropping(chance))


def _dropping(chance: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    drop_path = import_timm("timm.layers").drop_path
    return lambda branch, _, output: drop_path(output, chance, branch.training)


def layer_decayed(model: Classifier, recipe: FinetuneRecipe) -> torch.optim.AdamW:
    """AdamW whose groups have an `lr_scale`: 1 for the classifier, layer_decay^(L - i) for block i of L.

    Vectors, norms and the position embedding do not decay.
    """
    groups = import_timm("timm.optim").param_groups_layer_decay(
        model,
        weight_decay=recipe.weight_decay,
        no_weight_decay_list=["visual.positional_embedding"],
        layer_decay=recipe.layer_decay,
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=recipe.betas)


@dataclass(frozen=True)
class RandAugment:
    """timm's, drawn again where it would leave a black image of 0 bits a colour: Pillow 12 refuses that."""

    transform: Callable[[Image.Image], Image.Image]

    def __call__(self, image: Image.Image) -> Image.Image:
        while True:
            try:
                return self.transform(image)
            except ValueError as error:
                if "bits" not in str(error):
                    raise


def rand_augment(recipe: FinetuneRecipe, model: FLIP) -> RandAugment:
    """The recipe's RandAugment for the model's images."""
    hints = {
        "translate_const": int(0.45 * model.spec.vision.image_size),
        "img_mean": tuple(round(255 * mean) for mean in model.spec.mean),
        "interpolation": Image.Resampling.BICUBIC,  # as MAE's code; timm would draw one for each turn
    }
    auto_augment = import_timm("timm.data.auto_augment")
    return RandAugment(auto_augment.rand_augment_transform(recipe.rand_augment, hints))


def finetune(
    model: Classifier,
    optimizer: torch.optim.AdamW,
    views: TrainingViews,
    recipe: FinetuneRecipe,
    world: World,
    *,
    first_epoch: int = 0,
    after_epoch: Callable[[int], None] = lambda epochs: None,
    progress: Progress = quiet,
) -> None:
    """Train from `first_epoch` (of 0 on) to the end; the result does not depend on where it was interrupted.

    Args:
        after_epoch: called, on every process, with the number of epochs done.

    Raises UserError where training diverges.
    """
    passes, steps = recipe.passes, views.steps
    total = passes.epochs * steps
    network: nn.Module = model
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        network = DistributedDataParallel(model, device_ids=devices)
    mix = _Mixing(recipe, model, world)
    schedule = Cosine(optimizer, scaled(recipe.base_lr, passes), total, recipe.warmup)
    log = EpochLog(passes, steps, world)
    network.train()
    for step, batch in enumerate(views.batches(first_epoch), first_epoch * steps):
        torch.manual_seed(_number(passes.seed, step, world.rank))  # what is dropped
        schedule.at(step)
        optimizer.zero_grad()
        loss = _accumulate(network, batch, mix, step, passes.batch_size // world.size)
        optimizer.step()
        progress("fine-tuning", step + 1, total)
        log.add(step, loss)
        if (step + 1) % steps == 0:
            after_epoch((step + 1) // steps)
    network.eval()


def _accumulate(network: nn.Module, batch: Iterator[Piece], mix: _Mixing, step: int, share: int) -> Tensor:
    """Gradients and mean loss of this process's `share` images; processes average at the last piece."""
    loss = torch.zeros(())
    done = 0
    for number, (images, labels) in enumerate(batch):
        done += len(labels)
        inputs, targets = mix(images, labels, step, number)
        waits = done < share and isinstance(network, DistributedDataParallel)
        with cast(DistributedDataParallel, network).no_sync() if waits else nullcontext():
            piece = mix.loss(network(inputs), targets) * (len(labels) / share)
            piece.backward()
        loss = loss.to(piece.device) + piece.detach()
    return loss


class _Mixing:
    """Mixup or cutmix of each piece with itself in reverse order, half of the time each, and their loss."""

    def __init__(self, recipe: FinetuneRecipe, model: Classifier, world: World) -> None:
        self._model, self._rank, self._seed = model, world.rank, recipe.passes.seed
        self._mixup = import_timm("timm.data.mixup").Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            num_classes=model.head.out_features,
        )
        self.loss: Callable[[Tensor, Tensor], Tensor] = import_timm("timm.loss").SoftTargetCrossEntropy()

    def __call__(self, images: Tensor, labels: Tensor, step: int, piece: int) -> tuple[Tensor, Tensor]:
        """Normalised images and class shares (B, classes)."""
        np.random.seed(_number(self._seed, step, self._rank, piece) % 2**32)
        return self._mixup(self._model.normalized(images), labels)


def _number(*parts: int) -> int:
    """A number that stands for all of these."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
