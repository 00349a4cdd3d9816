"""State dicts of flipscale's models under OpenCLIP's names, and back.

Two things differ. OpenCLIP's patch convolution has no bias: the bias is added to the position of every patch
instead, which gives the same sum. And fixed sin-cos positions are a tensor of OpenCLIP's state dict.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flipscale.errors import UserError
from flipscale.models.flip import MAX_LOG_SCALE, build_model
from flipscale.models.presets import ModelSpec
from flipscale.models.vision import sincos_positions

StateDict = dict[str, Tensor]

_BIAS = "visual.conv1.bias"
POSITIONS = "visual.positional_embedding"


def open_clip_state(state: Mapping[str, Tensor], spec: ModelSpec) -> StateDict:
    """Convert a state dict of flipscale to one that OpenCLIP's CLIP class expects.

    The logit scale is clipped as in the forward pass, since OpenCLIP uses it as it is. The decoder of the
    reconstruction loss is left out: only training needs it.

    Args:
        state: Tensors under flipscale's names.
        spec: The model's shape.

    Returns:
        Contiguous fp32 tensors on the CPU.
    """
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in state.items()
        if not name.startswith("reconstruction.")
    }

    if spec.vision.positions == "sincos":
        tensors[POSITIONS] = sincos_positions(spec.vision.width, spec.vision.grid)
    if spec.vision.patch_bias:
        positions = tensors[POSITIONS].clone()
        positions[1:] += tensors.pop(_BIAS)
        tensors[POSITIONS] = positions

    tensors["logit_scale"] = tensors["logit_scale"].reshape(()).clamp(0.0, MAX_LOG_SCALE)
    if spec.logit_bias:
        tensors["logit_bias"] = tensors["logit_bias"].reshape(())
    return tensors


def flipscale_state(tensors: Mapping[str, Tensor], spec: ModelSpec, patch_bias: Tensor | None) -> StateDict:
    """Convert a state dict of OpenCLIP to one of flipscale: the inverse of `open_clip_state`.

    The inverse is exact with the patch bias that was added to the positions, and within a rounding without
    it.

    Args:
        tensors: Tensors under OpenCLIP's names.
        spec: The model's shape.
        patch_bias: The bias (width,) of the patch convolution, if it was stored.

    Raises:
        UserError: If a tensor is missing, unknown, or has another shape than the spec says.
    """
    state = dict(tensors)

    if spec.vision.positions == "sincos":
        positions = state.pop(POSITIONS)
        if spec.vision.patch_bias:
            state[_BIAS] = folded_bias(positions) if patch_bias is None else patch_bias
    for name in ("logit_scale", "logit_bias"):
        if name in state and state[name].numel() == 1:
            state[name] = state[name].reshape(1)

    _check_shapes(state, spec)
    return state


def folded_bias(positions: Tensor) -> Tensor:
    """Return the patch bias (width,) within fixed positions (1 + patches, width).

    It is taken at the origin, where the table is zeros and ones on any machine: every process gets the same
    bits, and zeros from a table without bias.
    """
    return positions[1].float() - sincos_positions(positions.shape[1], 1)[1]


def _check_shapes(state: Mapping[str, Tensor], spec: ModelSpec) -> None:
    """Raise UserError unless a state dict has the tensors of the spec, by name and shape."""
    expected = build_model(spec, device="meta").state_dict()

    wrong: list[str] = []
    for name in expected | dict(state):
        actual = tuple(state[name].shape) if name in state else "missing"
        wanted = tuple(expected[name].shape) if name in expected else "unknown"
        if actual != wanted:
            wrong.append(f"{name!r} is {actual} in the file, {wanted} by the configuration")

    if wrong:
        more = f", and {len(wrong) - 3} more tensors differ" if len(wrong) > 3 else ""
        raise UserError(
            f"the weights do not fit the model: {'; '.join(wrong[:3])}{more}; "
            "name the model that they were trained as, or weights of this one"
        )
