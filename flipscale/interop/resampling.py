"""Change the weights of a model to another image size or another patch size.

Three things depend on these sizes:

- Fixed sin-cos positions are computed, not stored: a model of the new shape has those of its own grid.
- Learned positions are resized like a picture with one pixel per patch: bicubic and antialiased, with the
  class token's position left as it is. OpenCLIP and timm do the same on loading.
- Patch kernels are resized with the pseudo-inverse of the resizing of patches (Beyer et al., FlexiViT,
  section 3.4). Of all kernels of the new size, this gives the one whose products with resized patches are
  nearest to the old products with the patches themselves. A kernel that is resized as if it were an image
  would also change how strongly it answers, by the ratio of the areas (14 px for 16: by 0.77).

The last layer of a decoder that reconstructs patches is resized so that it paints the old patches, resized.

The resizing runs on the CPU in fp32, whatever the dtype of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from flipscale.errors import UserError
from flipscale.interop.openclip_state import StateDict
from flipscale.models.flip import build_model
from flipscale.models.presets import ModelSpec
from flipscale.third_party import import_timm

KERNEL = "visual.conv1.weight"
POSITIONS = "visual.positional_embedding"
PAINTING = ("reconstruction.pixels.weight", "reconstruction.pixels.bias")


def resample_state(state: Mapping[str, Tensor], from_spec: ModelSpec, to_spec: ModelSpec) -> StateDict:
    """Resample the weights of one model to another shape; weights that keep their shape are not copied.

    Args:
        state: All weights or some of them, under flipscale's names, on the CPU.
        from_spec: The shape of the model that the weights belong to.
        to_spec: The same model with another image size, another patch size, or both.

    Raises:
        UserError: If the models differ in more than these sizes, or timm is not installed.
    """
    resampled = dict(state)

    if KERNEL in state:
        resampled[KERNEL] = _resized_kernel(state[KERNEL], to_spec.vision.patch_size)
    if POSITIONS in state and from_spec.vision.grid != to_spec.vision.grid:
        resampled[POSITIONS] = _resized_positions(state[POSITIONS], to_spec.vision.grid)
    for name in PAINTING:
        if name in state:
            resampled[name] = _resized_painting(state[name], to_spec.vision.patch_size)

    wanted = shapes(to_spec)
    for name, tensor in resampled.items():
        if name not in wanted:
            raise UserError(f"weight {name!r} has no place in a {to_spec.name}; resample to the same model")
        if tuple(tensor.shape) != wanted[name]:
            raise UserError(
                f"weight {name!r} is {tuple(tensor.shape)}, and {wanted[name]} in the new shape; only image "
                "and patch size can change, so leave the rest of the model as it is"
            )

    return resampled


def check_ready() -> None:
    """Check that resampling can be done here, before a long training would end at it.

    Raises:
        UserError: If timm is not installed.
    """
    import_timm("timm.layers")


def resized_names(from_spec: ModelSpec, to_spec: ModelSpec) -> list[str]:
    """Return the names of the weights whose shape differs between two models."""
    before = shapes(from_spec)
    after = shapes(to_spec)
    return [name for name, shape in before.items() if after.get(name, shape) != shape]


def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a model, by name."""
    return {name: tuple(p.shape) for name, p in build_model(spec, device="meta").named_parameters()}


def _resized_kernel(kernel: Tensor, side: int) -> Tensor:
    """Resize a kernel (width, 3, old side, old side) to (width, 3, side, side)."""
    if kernel.shape[-1] == side:
        return kernel
    layers = import_timm("timm.layers")
    return layers.resample_patch_embed(kernel, [side, side], interpolation="bicubic", antialias=True)


def _resized_painting(layer: Tensor, side: int) -> Tensor:
    """Resize the layer's weight (3 x old side x old side, width) or bias (3 x old side x old side)."""
    pictures = layer.reshape(len(layer), -1).T  # (width or 1, pixels)
    old = math.isqrt(pictures.shape[1] // 3)
    if old == side:
        return layer

    resized = F.interpolate(
        pictures.reshape(-1, 3, old, old).float(), size=(side, side), mode="bicubic", antialias=True
    )
    return resized.flatten(1).T.reshape(3 * side * side, *layer.shape[1:]).to(layer.dtype).contiguous()


def _resized_positions(positions: Tensor, grid: int) -> Tensor:
    """Resize (1 + old grid x old grid, width) to (1 + grid x grid, width); the class token comes first."""
    layers = import_timm("timm.layers")
    resized = layers.resample_abs_pos_embed(
        positions[None], [grid, grid], num_prefix_tokens=1, interpolation="bicubic", antialias=True
    )
    return resized[0]
