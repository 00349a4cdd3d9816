"""The weights of a model at another image size or another patch size.

Three things depend on these sizes. Fixed sin-cos positions are computed, not kept: a model of the new shape
has those of its own grid. Learned positions are a picture of one pixel a patch, and are resized like one:
bicubic, antialiased, the class token's left as it is, which is what OpenCLIP and timm do on loading. Patch
kernels are resized by the pseudo-inverse of the resizing of patches (Beyer et al., FlexiViT, section 3.4): of
all kernels of the new size it takes those whose products with resized patches are nearest to the old products
with the patches themselves. Resizing a kernel as if it were an image would also change how strongly it
answers, by the ratio of the areas (14 px for 16: by 0.77), which the pseudo-inverse does not.

The last layer of a decoder that reconstructs patches is resized so that it paints what it painted, resized.

The resizing runs on the CPU and within fp32, whatever the weights' dtype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from flipscale.errors import UserError
from flipscale.interop.mapping import StateDict
from flipscale.models.flip import build_model
from flipscale.models.presets import ModelSpec
from flipscale.third_party import import_timm

KERNEL = "visual.conv1.weight"
POSITIONS = "visual.positional_embedding"
PAINTING = ("reconstruction.pixels.weight", "reconstruction.pixels.bias")


def resample_state(state: Mapping[str, Tensor], from_spec: ModelSpec, to_spec: ModelSpec) -> StateDict:
    """The state dict of `from_spec`'s model as one of `to_spec`'s; what keeps its shape is not copied.

    Args:
        state: all weights or some of them, under flipscale's names, on the CPU.
        from_spec: of the model that they belong to.
        to_spec: the same model with another image size, another patch size, or both.

    Raises:
        UserError: the two differ in more than these, or timm is not installed.
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
                f"weight {name!r} is {tuple(tensor.shape)}, and {wanted[name]} in the new shape; image and "
                "patch size alone can change, so leave the rest of the model as it is"
            )
    return resampled


def check_ready() -> None:
    """Raise UserError where resampling cannot be done here; later, a long training would end at it."""
    import_timm("timm.layers")


def resized_names(from_spec: ModelSpec, to_spec: ModelSpec) -> list[str]:
    """The weights whose shape differs between the two."""
    before, after = shapes(from_spec), shapes(to_spec)
    return [name for name, shape in before.items() if after.get(name, shape) != shape]


def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, by name."""
    return {name: tuple(p.shape) for name, p in build_model(spec, device="meta").named_parameters()}


def _resized_kernel(kernel: Tensor, side: int) -> Tensor:
    """(width, 3, old side, old side) to (width, 3, side, side)."""
    if kernel.shape[-1] == side:
        return kernel
    layers = import_timm("timm.layers")
    return layers.resample_patch_embed(kernel, [side, side], interpolation="bicubic", antialias=True)


def _resized_painting(layer: Tensor, side: int) -> Tensor:
    """The weight (3 x old side x old side, width) or the bias (3 x old side x old side) for another side."""
    pictures = layer.reshape(len(layer), -1).T  # (width or 1, pixels)
    old = math.isqrt(pictures.shape[1] // 3)
    if old == side:
        return layer
    resized = F.interpolate(
        pictures.reshape(-1, 3, old, old).float(), size=(side, side), mode="bicubic", antialias=True
    )
    return resized.flatten(1).T.reshape(3 * side * side, *layer.shape[1:]).to(layer.dtype).contiguous()


def _resized_positions(positions: Tensor, grid: int) -> Tensor:
    """(1 + old grid x old grid, width) to (1 + grid x grid, width); the class token comes first."""
    layers = import_timm("timm.layers")
    resized = layers.resample_abs_pos_embed(
        positions[None], [grid, grid], num_prefix_tokens=1, interpolation="bicubic", antialias=True
    )
    return resized[0]
