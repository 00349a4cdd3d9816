"""Initial weights: a pure function of (seed, parameter name), the same on any device and any sharding."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flipscale.models.presets import ModelSpec

INITIAL_LOG_SCALE = math.log(1 / 0.07)
# For the sigmoid loss (Zhai et al., Sigmoid Loss for Language Image Pre-Training, section 3.2): nearly all
# pairs do not match, and without this bias the first steps would only correct for that.
SIGMOID_LOG_SCALE = math.log(10)
SIGMOID_BIAS = -10.0


def initial_value(name: str, shape: Sequence[int], spec: ModelSpec, seed: int) -> Tensor:
    """Return the initial value of one parameter, fp32 on the CPU.

    FLIP has Xavier-uniform matrices, N(0, 0.02) tables and class token, zero biases and unit norms (released
    code of the paper). CLIP has the distributions of OpenCLIP's constructor.

    Args:
        name: The name in the state dict, for example `visual.transformer.resblocks.0.mlp.c_fc.weight`.
        shape: The shape of the whole parameter, not of a shard.
        spec: The shape of the model.
        seed: Seed of the run.
    """
    value = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))

    if name == "logit_scale":
        return value.fill_(SIGMOID_LOG_SCALE if spec.logit_bias else INITIAL_LOG_SCALE)
    if name == "logit_bias":
        return value.fill_(SIGMOID_BIAS)

    parts = name.split(".")
    if len(parts) > 1 and parts[-2].startswith("ln_"):
        return value.fill_(1.0 if parts[-1] == "weight" else 0.0)
    if parts[0] == "reconstruction":
        return _fill_flip(value, name, spec, generator)  # as in MAE
    return (_fill_flip if spec.family == "flip" else _fill_clip)(value, name, spec, generator)


def _fill_flip(value: Tensor, name: str, spec: ModelSpec, generator: torch.Generator) -> Tensor:
    if name.endswith(("_embedding", "token_embedding.weight", "mask_token")):
        return value.normal_(std=0.02, generator=generator)
    if name.endswith("bias"):
        return value.zero_()

    # A fused q, k, v matrix and a convolution count as one matrix each.
    rows = len(value)
    columns = value[0].numel()
    return _uniform(value, math.sqrt(6 / (rows + columns)), generator)


def _fill_clip(value: Tensor, name: str, spec: ModelSpec, generator: torch.Generator) -> Tensor:
    leaf = name.split("resblocks.")[-1].split(".", 1)[-1]

    # Tables, class token and projections.
    if name == "token_embedding.weight":
        return value.normal_(std=0.02, generator=generator)
    if name == "positional_embedding":
        return value.normal_(std=0.01, generator=generator)
    if name in ("visual.class_embedding", "visual.positional_embedding", "visual.proj"):
        return value.normal_(std=spec.vision.width**-0.5, generator=generator)
    if name == "text_projection":
        return value.normal_(std=spec.text.width**-0.5, generator=generator)

    # Biases.
    if leaf in ("conv1.bias", "attn.in_proj_bias", "attn.out_proj.bias"):  # OpenCLIP has no conv1.bias
        return value.zero_()
    if leaf in ("mlp.c_fc.bias", "mlp.c_proj.bias"):
        width = (spec.vision if name.startswith("visual.") else spec.text).width
        return _uniform(value, (width if leaf == "mlp.c_fc.bias" else 4 * width) ** -0.5, generator)

    # Matrices of the image tower.
    if name.startswith("visual."):
        if leaf == "attn.in_proj_weight":
            return _uniform(value, math.sqrt(6 / sum(value.shape)), generator)
        return _uniform(value, value[0].numel() ** -0.5, generator)

    # Matrices of the text tower.
    width = spec.text.width
    layers = spec.text.layers
    residual = (width * 2 * layers) ** -0.5
    std = {
        "attn.in_proj_weight": width**-0.5,
        "attn.out_proj.weight": residual,
        "mlp.c_fc.weight": (2 * width) ** -0.5,
        "mlp.c_proj.weight": residual,
    }[leaf]
    return value.normal_(std=std, generator=generator)


def _uniform(value: Tensor, bound: float, generator: torch.Generator) -> Tensor:
    return value.uniform_(-bound, bound, generator=generator)
