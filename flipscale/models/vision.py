"""The image tower: pixels of the visible patches to one feature (paper, section 3.1)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flipscale.models.blocks import LayerNorm, Transformer
from flipscale.models.presets import ModelSpec


def sincos_positions(width: int, grid: int) -> Tensor:
    """Return fixed 2-D sin-cos positions.

    The first half of the channels encodes the column, the second half the row. Each half has sines, then
    cosines, at frequencies 10000^(-i / (width / 4)). This is the layout of MAE and of OpenCLIP.

    Args:
        width: Channels; a multiple of 4.
        grid: Patches along one side.

    Returns:
        (1 + grid x grid, width) in fp32. The first row is that of the class token, and zero.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width / 4))
    angles = torch.arange(grid, dtype=torch.float64, device="cpu")[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    columns = axis[None, :].expand(grid, grid, -1)
    rows = axis[:, None].expand(grid, grid, -1)
    table = torch.cat([columns, rows], dim=2).reshape(grid * grid, width)
    return torch.cat([torch.zeros_like(table[:1]), table]).float()


class WithConstants(nn.Module):
    """A module whose computed buffers stay fp32, and are recomputed after a cast, a move or `to_empty`."""

    @abstractmethod
    def constants(self) -> dict[str, Tensor]:
        """Return the values of the buffers by name, on the CPU."""

    def register_constants(self) -> None:
        """Register the buffers; they are not part of the state dict."""
        for name, value in self.constants().items():
            self.register_buffer(name, value.to(torch.get_default_device()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for name, value in self.constants().items():
            setattr(self, name, value.to(self.get_buffer(name).device))
        return self


class PatchEmbedding(WithConstants):
    """The patch convolution, as a product over the visible patches only.

    No pixel of a hidden patch is copied, normalised or embedded.

    Args:
        spec: The shape of the model.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.patch_size = spec.vision.patch_size
        self.image_size = spec.vision.image_size
        self.mean, self.std = spec.mean, spec.std
        width = spec.vision.width
        side = spec.vision.patch_size
        self.weight = nn.Parameter(torch.empty(width, 3, side, side))
        self.bias = nn.Parameter(torch.empty(width)) if spec.vision.patch_bias else None
        self.register_constants()

    def constants(self) -> dict[str, Tensor]:
        """Return the normalisation (x / 255 - mean) / std of bytes x: a factor and a summand per channel."""
        mean = torch.tensor(self.mean, dtype=torch.float64, device="cpu")
        std = torch.tensor(self.std, dtype=torch.float64, device="cpu")
        return {
            "pixel_scale": (1.0 / (255.0 * std)).float()[:, None],
            "pixel_shift": (-mean / std).float()[:, None],
        }

    def forward(self, images: Tensor, keep: Tensor | None) -> Tensor:
        """Embed the visible patches.

        Args:
            images: (B, 3, S, S), uint8, or floats that are already normalised.
            keep: (B, K) int64 ids of the visible patches; None for all.

        Returns:
            (B, K, width).
        """
        pixels = self.pixels(images, keep)
        return F.linear(pixels.flatten(2).to(self.weight.dtype), self.weight.flatten(1), self.bias)

    def pixels(self, images: Tensor, keep: Tensor | None) -> Tensor:
        """Return the normalised pixels of the visible patches; arguments as in `forward`.

        Returns:
            (B, K, 3, side x side); from uint8 images at least fp32.
        """
        assert images.shape[-2:] == (self.image_size, self.image_size), f"images of shape {images.shape}"
        pixels = (
            all_pixels(images, self.patch_size)
            if keep is None
            else visible_pixels(images, keep, self.patch_size)
        )
        if images.dtype == torch.uint8:
            exact = torch.promote_types(self.weight.dtype, torch.float32)
            pixels = pixels.to(exact) * self.pixel_scale + self.pixel_shift
        return pixels


def all_pixels(images: Tensor, side: int) -> Tensor:
    """Return the pixels of all patches of (B, 3, S, S) images: (B, patches, 3, side x side)."""
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels, side * side)


def visible_pixels(images: Tensor, keep: Tensor, side: int) -> Tensor:
    """Return the pixels of the visible patches.

    A row of an image is S / side runs of `side` pixels, each wholly inside one patch. A single gather of runs
    thus fetches the visible patches and touches nothing else.

    Args:
        images: (B, 3, S, S).
        keep: (B, K) int64 ids of the visible patches.
        side: Side of a patch in pixels.

    Returns:
        (B, K, 3, side x side).
    """
    batch, channels, height, width = images.shape
    grid = width // side
    runs = images.reshape(-1, side)  # numbered by (sample, channel, row, column of the grid)

    device = images.device
    first_of_sample = torch.arange(batch, device=device)[:, None] * (channels * height * grid)
    first_of_patch = first_of_sample + (keep // grid) * (side * grid) + keep % grid  # (B, K)
    channel = torch.arange(channels, device=device)[:, None] * (height * grid)
    offsets = channel + torch.arange(side, device=device) * grid  # (3, side)

    numbers = first_of_patch[:, :, None, None] + offsets
    return runs.index_select(0, numbers.flatten()).view(batch, keep.shape[1], channels, side * side)


class VisionTransformer(WithConstants):
    """A ViT with a class token that is never masked; the feature is pooled after the final norm.

    Args:
        spec: The shape of the model.
    """

    positional_embedding: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = vision = spec.vision
        self.conv1 = PatchEmbedding(spec)
        self.class_embedding = nn.Parameter(torch.empty(vision.width))
        if vision.positions == "learned":
            self.positional_embedding = nn.Parameter(torch.empty(1 + vision.patches, vision.width))
        self.register_constants()
        self.ln_pre = LayerNorm(vision.width, eps=vision.norm_eps) if vision.norm_before else nn.Identity()
        self.transformer = Transformer(vision)
        self.ln_post = LayerNorm(vision.width, eps=vision.norm_eps)
        self.proj = nn.Parameter(torch.empty(vision.width, spec.embed_dim))

    def constants(self) -> dict[str, Tensor]:
        """Return the sin-cos positions, unless the positions are learned."""
        if self.spec.positions == "learned":
            return {}
        return {"positional_embedding": sincos_positions(self.spec.width, self.spec.grid)}

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the features of images, (B, embed_dim), not normalised; arguments as in `tokens`."""
        return self.feature(self.tokens(images, keep))

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the tokens of images after the last norm.

        Args:
            images: (B, 3, S, S), uint8, or floats that are already normalised.
            keep: (B, K) int64 ids of the visible patches; None for all.

        Returns:
            (B, 1 + K, width); the first token is the class token.
        """
        patches = self.conv1(images, keep)
        if keep is None:
            positions = self.positional_embedding[1:]
        else:
            positions = F.embedding(keep + 1, self.positional_embedding)

        patches = patches + positions.to(patches.dtype)
        class_token = (self.class_embedding + self.positional_embedding[0]).to(patches.dtype)
        x = torch.cat([class_token.expand(len(patches), 1, -1), patches], dim=1)
        return self.ln_post(self.transformer(self.ln_pre(x)))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Pool tokens (B, 1 + K, width) to the vector (B, width) that is projected to the feature."""
        return tokens[:, 1:].mean(dim=1) if self.spec.pool == "patch_mean" else tokens[:, 0]

    def feature(self, tokens: Tensor) -> Tensor:
        """Pool and project tokens (B, 1 + K, width) to features (B, embed_dim)."""
        return self.pooled(tokens) @ self.proj
