"""Read models from OpenCLIP directories: our own exports bit for bit, and others' models."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flipscale.errors import UserError
from flipscale.interop.openclip_config import spec_of_open_clip
from flipscale.interop.openclip_directory import BIAS_KEY, finished_config
from flipscale.interop.openclip_state import POSITIONS, StateDict, flipscale_state
from flipscale.interop.weights import Weights, find_weights, read_weights
from flipscale.models.presets import ModelSpec


def import_openclip(source: Path) -> tuple[ModelSpec, StateDict]:
    """Read an OpenCLIP directory: the inverse of `export_openclip`, bit for bit; also others' models.

    Args:
        source: The directory.

    Returns:
        The model's shape and its state dict.

    Raises:
        UserError: If the model does not exist, its weights are unsafe or damaged, or it has a feature that
            flipscale's towers lack.
    """
    config = finished_config(source)
    return convert_openclip(config, read_weights(find_weights(source)), source.name)


def convert_openclip(
    config: Mapping[str, Any], weights: Weights | None, name: str
) -> tuple[ModelSpec, StateDict]:
    """Convert a model that OpenCLIP describes.

    Args:
        config: The parsed `open_clip_config.json`.
        weights: The model's weights under OpenCLIP's names, or None.
        name: The name of the model, unless flipscale wrote it.

    Returns:
        The model's shape, and its state dict, which is empty without weights.

    Raises:
        UserError: If the model has a feature that flipscale's towers lack, or weights of another shape.
    """
    ours: Mapping[str, Any] = config.get("flipscale") or {}
    written = ours.get("model")
    name = written if isinstance(written, str) and written.isprintable() else name
    if weights is None:
        return spec_of_open_clip(config, None, None, name), {}

    bias = _stored_bias(weights)
    spec = spec_of_open_clip(config, weights.tensors, bias, name)
    return spec, flipscale_state(weights.tensors, spec, bias)


def _stored_bias(weights: Weights) -> Tensor | None:
    """Return the patch bias (width,) in the header of the weights, if there is one."""
    encoded = weights.header.get(BIAS_KEY)
    if not encoded:
        return None

    try:
        data = base64.b64decode(encoded, validate=True)
        bias = torch.frombuffer(bytearray(data), dtype=torch.float32)
    except ValueError:
        bias = torch.tensor([torch.nan])

    positions = weights.tensors.get(POSITIONS)
    fits = positions is not None and positions.ndim == 2 and bias.shape == positions.shape[1:]
    if not fits or not bias.isfinite().all():
        raise UserError(
            f"the header {BIAS_KEY} of the weights is damaged: it holds no patch bias of this model; export "
            "it again"
        )
    return bias
