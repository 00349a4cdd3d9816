"""The network that fine-tuning trains, an image tower with a linear classifier, and its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flipscale.models.blocks import ResidualBlock
from flipscale.models.flip import FLIP
from flipscale.models.vision import VisionTransformer
from flipscale.third_party import import_timm
from flipscale.transfer.finetune_recipe import FinetuneRecipe
from flipscale.transfer.image_features import half_precision

_INITIAL_STD = 2e-5  # of the classifier's weights, as in MAE's code


class TowerClassifier(nn.Module):
    """The image tower without its projection, and a linear layer on the pooled feature."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: FLIP, classes: int, drop_path: float, seed: int) -> None:
        """Take over the tower of `model`, and draw the weights of the linear layer.

        Args:
            model: The model, whose tower is trained in place.
            classes: Outputs of the linear layer.
            drop_path: Chance to leave out a branch of the last block.
            seed: Seed of the weights of the linear layer.
        """
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

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes), fp32.

        Args:
            images: (B, 3, S, S), uint8, or floats that `normalized` returned.
        """
        with half_precision(images.device):
            pooled = self.visual.pooled(self.visual.tokens(images))
        return self.head(pooled.float())

    def normalized(self, images: Tensor) -> Tensor:
        """Return uint8 images as the floats that `forward` takes; mixing needs them."""
        return (images.float() / 255 - self.mean) / self.std

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the layers of the tower, as timm asks for them to group the parameters.

        They are the embeddings, then each block; the rest is the last layer.
        """
        return {
            "stem": r"^visual\.(?:conv1|class_embedding|positional_embedding|ln_pre)",
            "blocks": r"^visual\.transformer\.resblocks\.(\d+)",
        }


def layer_decayed(model: TowerClassifier, recipe: FinetuneRecipe) -> torch.optim.AdamW:
    """Return AdamW with a learning rate that decays from layer to layer.

    Its groups have an `lr_scale`: 1 for the classifier, layer_decay^(L - i) for block i of L. Vectors, norms
    and the position embedding do not decay.
    """
    groups = import_timm("timm.optim").param_groups_layer_decay(
        model,
        weight_decay=recipe.weight_decay,
        no_weight_decay_list=["visual.positional_embedding"],
        layer_decay=recipe.layer_decay,
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=recipe.betas)


def _drop_paths(tower: VisionTransformer, last: float) -> None:
    """Drop branches of the blocks in training mode; with hooks, the weights keep their names."""
    blocks = list(tower.transformer.resblocks)
    for block, chance in zip(blocks, np.linspace(0, last, len(blocks)).tolist(), strict=True):
        assert isinstance(block, ResidualBlock)
        for branch in (block.attn, block.mlp):
            branch.register_forward_hook(_dropping(chance))


def _dropping(chance: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    drop_path = import_timm("timm.layers").drop_path
    return lambda branch, _, output: drop_path(output, chance, branch.training)
