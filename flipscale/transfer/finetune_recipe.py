"""The settings of a fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.errors import UserError
from flipscale.transfer.passes import Passes


@dataclass(frozen=True)
class FinetuneRecipe:
    """The paper's recipe for ViT-L and ViT-H (FLIP, table 12).

    With fewer epochs, the warm-up keeps its share.

    Raises:
        UserError: If `drop_path` is not in [0, 1).
    """

    passes: Passes = Passes(epochs=50, batch_size=1024)  # noqa: RUF009
    base_lr: float = 5e-5
    """Learning rate for 256 images; the rate of the last layer is base_lr x batch_size / 256."""
    warmup: float = 5 / 50
    """Share of the epochs that the warm-up takes."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 0.75
    """Factor of the learning rate from each block to the block before it."""
    drop_path: float = 0.2
    """Chance to leave out a branch of the last block; it grows linearly from 0 in the first block."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAug(9, 0.5) in the notation of timm and MAE's code."""
    label_smoothing: float = 0.1
    mixup: float = 0.8
    """Parameter alpha of the Beta distribution of the mixing shares; likewise for cutmix."""
    cutmix: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise UserError(f"--drop-path is {self.drop_path:g}; give a share from 0 to below 1")
