"""The MAE decoder: it reconstructs the hidden patches from the image tower's tokens of the visible ones.

It is an ablation of training (paper, table 1f). The exported model has no trace of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flipscale.models.blocks import LayerNorm, Transformer
from flipscale.models.presets import ModelSpec
from flipscale.models.vision import WithConstants, sincos_positions

_EPS = 1e-6  # of the variance of a patch, as in MAE's released code


class Reconstruction(WithConstants):
    """A small transformer over the tokens of the visible patches, and a mask token for every hidden patch.

    It takes the tokens after the last norm of the image tower, as MAE does. Without this norm the output of
    the tower has no fixed scale, and the feature is pooled after the norm.

    Args:
        spec: The shape of the model, with a decoder.
    """

    positional_embedding: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.decoder is not None
        self.width = spec.decoder.width
        self.grid, self.patch_size = spec.vision.grid, spec.vision.patch_size
        self.embed = nn.Linear(spec.vision.width, self.width)
        self.mask_token = nn.Parameter(torch.empty(self.width))
        self.register_constants()
        self.transformer = Transformer(spec.decoder)
        self.ln_post = LayerNorm(self.width, eps=spec.decoder.norm_eps)
        self.pixels = nn.Linear(self.width, 3 * self.patch_size**2)

    def constants(self) -> dict[str, Tensor]:
        """Return fixed 2-D sin-cos positions of the decoder's width."""
        return {"positional_embedding": sincos_positions(self.width, self.grid)}

    def forward(self, tokens: Tensor, keep: Tensor, hidden: Tensor, pixels: Tensor) -> Tensor:
        """Return the mean squared error over all pixels of the hidden patches, each patch normalised.

        Args:
            tokens: (B, 1 + K, vision width), the class token's first.
            keep: (B, K) int64 ids of the visible patches, in the order of their tokens.
            hidden: (B, H) int64 ids of the hidden patches.
            pixels: (B, H, 3, side x side), the pixels of the hidden patches.

        Returns:
            0-d, at least fp32.
        """
        visible = self.embed(tokens)

        # Attention sees order only through the positions: the hidden patches may all come last.
        ids = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1, hidden + 1], dim=1)
        masks = self.mask_token.to(visible.dtype).expand(*hidden.shape, -1)
        positions = F.embedding(ids, self.positional_embedding).to(visible.dtype)
        x = self.transformer(torch.cat([visible, masks], dim=1) + positions)

        predicted = self.pixels(self.ln_post(x[:, tokens.shape[1] :]))
        return (predicted - normalized_patches(pixels)).square().mean()


def normalized_patches(pixels: Tensor) -> Tensor:
    """Normalise every patch by its mean and standard deviation over all channels (MAE, section 3).

    The variance is unbiased, as in MAE's released code.

    Args:
        pixels: (..., 3, side x side).

    Returns:
        (..., 3 x side x side), at least fp32.
    """
    flat = pixels.flatten(-2).to(torch.promote_types(pixels.dtype, torch.float32))
    variance, mean = torch.var_mean(flat, dim=-1, keepdim=True)
    return (flat - mean) * (variance + _EPS).rsqrt()
