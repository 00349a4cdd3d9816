"""What one process keeps of a forward pass for its backward, in bytes, counted tensor by tensor.

The counts follow flipscale/models and are held against what torch really keeps
(tests/planning/test_activations.py): on a CPU they are right to 1 %. On CUDA two things differ, by torch's
rules for autocast: attention runs in bf16 instead of fp32, and a norm keeps an fp32 copy of its bf16 input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flipscale.config import Sharding
from flipscale.models.presets import ModelSpec, TowerSpec

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class ElementSizes:
    """Bytes of one element under a precision: what is exact, matrix products, attention."""

    exact: int
    """Weights, moments, features, loss, and the text tower's residual stream."""
    product: int
    """Matrix products, and the image tower's residual stream."""
    attention: int
    norm_copies: bool
    """Whether a norm keeps a copy of an input that is not exact."""

    @classmethod
    def of(cls, precision: str, device: Device) -> ElementSizes:
        if precision != "bf16":
            size = 8 if precision == "fp64" else 4
            return cls(size, size, size, norm_copies=False)
        return cls(4, 2, 2 if device == "cuda" else 4, norm_copies=device == "cuda")


@dataclass(frozen=True)
class TowerActivations:
    """Bytes of one tower's activations."""

    kept: int
    """Held from the end of the forward to the tower's backward."""
    recomputed: int
    """Held on top while the backward goes through one block: gradients, and what is computed again."""


def image_activations(
    spec: ModelSpec, pairs: int, visible: int, sharding: Sharding, sizes: ElementSizes
) -> TowerActivations:
    """Activations of the image tower for `pairs` images of `visible` patches each."""
    vision = spec.vision
    tokens = pairs * (visible + 1)
    norm = _norm(tokens, vision.width, sizes.product, sizes)
    pixels = pairs * visible * 3 * vision.patch_size**2 * sizes.product
    positions = pairs * visible * 8 if vision.positions == "learned" and visible < vision.patches else 0
    outside = pixels + positions + norm * (2 if vision.norm_before else 1)  # ln_post, and ln_pre
    # The class token's feature is a view, which keeps all tokens alive; the mean is a tensor of its own.
    pooled = (tokens if vision.pool == "class_token" else pairs) * vision.width * sizes.product
    blocks = _blocks(vision, tokens, pairs, sizes.product, sharding, sizes)
    return TowerActivations(blocks.kept + outside + pooled + _feature(spec, pairs, sizes), blocks.recomputed)


def text_activations(
    spec: ModelSpec, pairs: int, visible: int, sharding: Sharding, sizes: ElementSizes
) -> TowerActivations:
    """Activations of the text tower for `pairs` captions of `visible` tokens each."""
    text = spec.text
    tokens = pairs * visible
    ids = tokens * 8 if visible < text.context_length else 0  # else they are the batch's own
    # The pooled position is a view, which keeps all positions alive; picking one by argmax makes a copy.
    last = (tokens if text.pool == "first" else pairs) * text.width * sizes.exact
    pooled = pairs * text.width * sizes.product
    blocks = _blocks(text, tokens, pairs, sizes.exact, sharding, sizes)
    kept = blocks.kept + ids + last + pooled + _feature(spec, pairs, sizes)
    return TowerActivations(kept, blocks.recomputed)


def decoder_activations(
    spec: ModelSpec, pairs: int, visible: int, sharding: Sharding, sizes: ElementSizes
) -> TowerActivations:
    """Activations of the reconstruction for `pairs` images of `visible` patches each; none without a decoder
    or where nothing is hidden."""
    decoder, vision = spec.decoder, spec.vision
    if decoder is None or visible == vision.patches:
        return TowerActivations(0, 0)
    tokens, hidden = pairs * (vision.patches + 1), pairs * (vision.patches - visible)
    # Where a class token is the feature, the tower's tokens are kept already.
    given = pairs * (visible + 1) * vision.width * sizes.product if vision.pool == "patch_mean" else 0
    # The last norm takes a view, which keeps all tokens alive, unless it takes a copy.
    last = hidden * sizes.exact if sizes.norm_copies else tokens * sizes.product
    last *= decoder.width
    normed = hidden * decoder.width * sizes.product + 2 * hidden * sizes.exact
    error = hidden * 3 * vision.patch_size**2 * sizes.exact
    blocks = _blocks(decoder, tokens, pairs, sizes.product, sharding, sizes)
    # Beside the error there are once the pixels, the patches normalised, and what is painted.
    return TowerActivations(blocks.kept + given + last + normed + error, max(blocks.recomputed, 3 * error))


def recomputing_blocks(layers: int, mode: str) -> int:
    """Blocks of a tower whose forward the backward repeats, whole or in part.

    `mode` as in sharding.activation_checkpointing.
    """
    if mode == "none":
        return 0
    every = int(mode.removeprefix("every ")) if mode.startswith("every ") else 1
    return -(-layers // every)


def weight_copies(spec: ModelSpec, sharding: Sharding, sizes: ElementSizes) -> int:
    """bf16 copies that autocast makes of fp32 weights and that wait for the backward.

    A recomputed block makes them again; FSDP gathers blocks in bf16 and needs none.
    """
    if sizes.product == sizes.exact:
        return 0
    copied = (spec.vision.width + spec.text.width) * spec.embed_dim  # the projections
    if spec.decoder is not None:
        copied += spec.decoder.width * (spec.vision.width + 3 * spec.vision.patch_size**2)
    if sharding.strategy not in ("fsdp", "hsdp"):
        for tower in spec.towers:
            whole = tower.layers - recomputing_blocks(tower.layers, sharding.activation_checkpointing)
            copied += whole * block_matrices(tower)
    return copied * sizes.product


def block_matrices(tower: TowerSpec) -> int:
    """Elements of a block's weight matrices: query, key, value and output, then the MLP."""
    return 4 * tower.width**2 + 2 * tower.width * tower.mlp_width


def _blocks(
    tower: TowerSpec, tokens: int, pairs: int, residual: int, sharding: Sharding, sizes: ElementSizes
) -> TowerActivations:
    elements = tokens * tower.width
    log_sums = tokens * tower.heads * max(4, sizes.exact)
    mixed = elements * sizes.attention
    products = elements * sizes.product
    whole = (
        2 * _norm(tokens, tower.width, residual, sizes)
        + 2 * products  # the norms' results, inputs of the two products after them
        + 3 * mixed  # query, key, value
        + mixed
        + (products if sizes.attention != sizes.product else 0)  # attention's result, cast
        + log_sums
        + 4 * products  # GELU's input
        + 4 * products  # and its result
    )
    block_input = elements * residual
    results = (3 + 1 + 4 + 1) * products + mixed + log_sums  # of products and of attention
    mode = sharding.activation_checkpointing
    recomputing = recomputing_blocks(tower.layers, mode)
    kept_by_one = block_input + (results if mode == "selective" else 0)
    kept = recomputing * kept_by_one + (tower.layers - recomputing) * whole

    gradient_of_weight = tower.width * tower.mlp_width * (sizes.product + sizes.exact)
    gradients = block_input + 5 * products + gradient_of_weight
    again = 0
    if recomputing:
        again = max(0, whole - kept_by_one)
        if sizes.product != sizes.exact:
            again += block_matrices(tower) * sizes.product
    return TowerActivations(kept, gradients + again)


def _norm(tokens: int, width: int, residual: int, sizes: ElementSizes) -> int:
    """A layer norm keeps its input, which is the residual stream itself or a copy, and two statistics."""
    element = max(residual, sizes.exact) if sizes.norm_copies else residual
    return tokens * width * element + 2 * tokens * sizes.exact


def _feature(spec: ModelSpec, pairs: int, sizes: ElementSizes) -> int:
    """The feature before and after its normalisation."""
    return 2 * pairs * spec.embed_dim * sizes.exact
