"""The `model` and `loss` blocks of a job: what is trained, and on which loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import field_validator, model_validator

from flipscale.config.values import (
    Default,
    FilledLine,
    ImageSide,
    Line,
    ModelSize,
    PositiveCount,
    PositiveFloat,
    Strict,
)


class Model(Strict):
    """The shape of the model, and the weights that it starts from."""

    preset: Line
    """The name of a preset: `vit_b32`, `vit_b16`, `vit_l16`, `vit_l14` or `vit_h14`; its CLIP baseline
    (`clip_b16`, ...); or a tiny one (`vit_tiny_p8`, `vit_micro_p8`)."""
    image_size: Annotated[ImageSide | None, Default("the preset's")] = None
    """Side of the square input in pixels."""
    patch_size: Annotated[ImageSide | None, Default("the preset's")] = None
    """Side of a patch in pixels."""
    weights: Annotated[FilledLine | None, Default("initial weights")] = None
    """Start from these weights instead of initial ones: an OpenCLIP directory, a run or a checkpoint. They
    are read when the run begins and never again. See
    docs/evaluation_and_export.md#starting-a-run-from-weights."""

    @model_validator(mode="before")
    @classmethod
    def _expand_bare_preset(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    @field_validator("weights", mode="before")
    @classmethod
    def _drop_prefix(cls, value: Any) -> Any:
        # OpenCLIP's prefix of directories: a job keeps the path, which the run records.
        return value.removeprefix("local-dir:") if isinstance(value, str) else value


class Reconstruction(Strict):
    """MAE's loss on the hidden patches, with a decoder that is dropped after training (paper, table 1f)."""

    weight: PositiveFloat = 1.0
    """Weight of this loss next to the contrastive loss. The paper adds the two, which is weight 1."""
    width: ModelSize = 256
    """Width of the decoder. The paper gives no size; this is a small one, with 32 channels per head as in
    MAE."""
    layers: ModelSize = 4
    """Blocks of the decoder."""
    heads: ModelSize = 8
    """Attention heads of the decoder; they must divide its width."""

    @model_validator(mode="after")
    def _check_width(self) -> Reconstruction:
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width {self.width} must be a multiple of 4, for its positions, and of the "
                f"{self.heads} heads; change one of them"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, layers and heads of the decoder, as `preset` takes them."""
        return self.width, self.layers, self.heads


class Loss(Strict):
    """The loss over all image-text pairs of a global batch."""

    kind: Literal["contrastive", "sigmoid"] = "contrastive"
    """`contrastive` is InfoNCE over the global batch (paper, section 3). `sigmoid` is SigLIP's loss over the
    same pairs, with a learned `logit_bias` in the model."""
    tile: PositiveCount = 512
    """Rows of the logit matrix that are computed at a time; memory grows with batch x tile."""
    reconstruction: Reconstruction | None = None
    """Also reconstruct the hidden patches, in the phases that hide some; `{}` takes the defaults."""

    @property
    def decoder(self) -> tuple[int, int, int] | None:
        """The decoder's shape, as `preset` takes it; None without reconstruction."""
        return None if self.reconstruction is None else self.reconstruction.shape
