"""The bytes that one process keeps of a forward pass for its backward, counted tensor by tensor.

The counts follow flipscale/models. tests/planning/test_activations.py compares them with what torch keeps: on
a CPU they are right to 1 %. CUDA differs in two ways, by torch's rules for autocast: attention runs in bf16
instead of fp32, and a norm whose weights are fp32 keeps an fp32 copy of its bf16 input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flipscale.config import Sharding
from flipscale.models.packing import is_packable
from flipscale.models.presets import ModelSpec, TowerSpec

Device = Literal["cuda", "cpu"]
_BF16_BLOCKS = ("fsdp", "hsdp")
"""The strategies that gather the weights of blocks in bf16, if the precision is bf16."""
_INDICES = 4
"""int64 numbers per packed token: its id, its place, its position, and where attention has it."""


@dataclass(frozen=True)
class ElementSizes:
    """Bytes per element under a precision: of exact values, of matrix products, and of attention."""

    exact: int
    """Weights, moments, features and loss."""
    product: int
    """Matrix products, and the residual streams of the towers."""
    attention: int
    """Queries, keys, values and the result of attention."""
    norm_copies: bool
    """Whether a norm with exact weights keeps a copy of an input that is not exact."""

    @classmethod
    def of(cls, precision: str, device: Device) -> ElementSizes:
        """Return the sizes under `sharding.precision` on a device."""
        if precision == "bf16":
            on_gpu = device == "cuda"
            return cls(4, 2, 2 if on_gpu else 4, norm_copies=on_gpu)

        size = 8 if precision == "fp64" else 4
        return cls(size, size, size, norm_copies=False)


@dataclass(frozen=True)
class TowerActivations:
    """Bytes of one tower's activations."""

    kept: int
    """Held from the end of the forward to the tower's backward."""
    recomputed: int
    """Held in addition while the backward runs through one block: gradients, and what is recomputed."""


def image_activations(
    spec: ModelSpec, pairs: int, visible: int, sharding: Sharding, sizes: ElementSizes
) -> TowerActivations:
    """Count the activations of the image tower.

    Args:
        spec: The model.
        pairs: Images that are computed at a time.
        visible: Visible patches per image.
        sharding: The job's sharding, for its activation checkpointing.
        sizes: Bytes per element.
    """
    vision = spec.vision
    tokens = pairs * (visible + 1)

    norm = _norm(tokens, vision.width, sizes, copies=sizes.norm_copies)
    pixels = pairs * visible * 3 * vision.patch_size**2 * sizes.product
    positions = pairs * visible * 8 if vision.positions == "learned" and visible < vision.patches else 0
    outside = pixels + positions + norm * (2 if vision.norm_before else 1)  # ln_post, and ln_pre

    # The class token's feature is a view, which keeps all tokens alive; the mean is a tensor of its own.
    pooled = (tokens if vision.pool == "class_token" else pairs) * vision.width * sizes.product
    blocks = _blocks(vision, tokens, sharding, sizes)
    return TowerActivations(blocks.kept + outside + pooled + _feature(spec, pairs, sizes), blocks.recomputed)


def text_activations(
    spec: ModelSpec, pairs: int, visible: int, sharding: Sharding, sizes: ElementSizes
) -> TowerActivations:
    """Count the activations of the text tower.

    Args:
        spec: The model.
        pairs: Captions that are computed at a time.
        visible: Visible tokens per caption.
        sharding: The job's sharding, for its activation checkpointing.
        sizes: Bytes per element.
    """
    text = spec.text
    tokens = pairs * visible
    ids = tokens * 8 if visible < text.context_length else 0  # otherwise they are the batch's own

    packed = is_packable(text, 1 - visible / text.context_length)
    if packed:
        ids = tokens * 8 * _INDICES

    # The pooled position is a view, which keeps all positions alive, unless the last norm copies it or argmax
    # picks it.
    view = text.pool == "first" and not sizes.norm_copies
    element = sizes.exact if sizes.norm_copies else sizes.product
    last = (tokens if view else pairs) * text.width * element
    pooled = pairs * text.width * sizes.product

    blocks = _blocks(text, tokens, sharding, sizes, packed=packed)
    kept = blocks.kept + ids + last + pooled + _feature(spec, pairs, sizes)
    return TowerActivations(kept, blocks.recomputed)


def decoder_activations(
    spec: ModelSpec, pairs: int, visible: int, sharding: Sharding, sizes: ElementSizes
) -> TowerActivations:
    """Count the activations of the reconstruction: none without a decoder or without hidden patches.

    Args:
        spec: The model.
        pairs: Images that are computed at a time.
        visible: Visible patches per image.
        sharding: The job's sharding, for its activation checkpointing.
        sizes: Bytes per element.
    """
    decoder = spec.decoder
    vision = spec.vision
    if decoder is None or visible == vision.patches:
        return TowerActivations(0, 0)

    tokens = pairs * (vision.patches + 1)
    hidden = pairs * (vision.patches - visible)

    # If a class token is the feature, the tower keeps its tokens already.
    tower_tokens = pairs * (visible + 1) * vision.width * sizes.product if vision.pool == "patch_mean" else 0
    # The last norm takes a view, which keeps all tokens alive, unless it takes a copy.
    last = hidden * sizes.exact if sizes.norm_copies else tokens * sizes.product
    last *= decoder.width
    normed = hidden * decoder.width * sizes.product + 2 * hidden * sizes.exact
    error = hidden * 3 * vision.patch_size**2 * sizes.exact
    blocks = _blocks(decoder, tokens, sharding, sizes)

    # Next to the error, the pixels, the normalised patches and the painted patches are held once each.
    return TowerActivations(
        blocks.kept + tower_tokens + last + normed + error, max(blocks.recomputed, 3 * error)
    )


def recomputing_blocks(layers: int, mode: str) -> int:
    """Return the number of a tower's blocks whose forward the backward repeats, as a whole or in part.

    Args:
        layers: Blocks of the tower.
        mode: As in `sharding.activation_checkpointing`.
    """
    if mode == "none":
        return 0
    every = int(mode.removeprefix("every ")) if mode.startswith("every ") else 1
    return -(-layers // every)


def weight_copies(spec: ModelSpec, sharding: Sharding, sizes: ElementSizes) -> int:
    """Count the bytes of the bf16 copies that autocast makes of fp32 weights and that wait for the backward.

    A recomputed block makes its copies again; FSDP gathers blocks in bf16 and needs no copies.
    """
    if sizes.product == sizes.exact:
        return 0

    copied = (spec.vision.width + spec.text.width) * spec.embed_dim  # the projections
    if spec.decoder is not None:
        copied += spec.decoder.width * (spec.vision.width + 3 * spec.vision.patch_size**2)

    if sharding.strategy not in _BF16_BLOCKS:
        for tower in spec.towers:
            whole = tower.layers - recomputing_blocks(tower.layers, sharding.activation_checkpointing)
            copied += whole * block_matrices(tower)

    return copied * sizes.product


def block_matrices(tower: TowerSpec) -> int:
    """Return the elements of a block's weight matrices: query, key, value and output, then the MLP."""
    return 4 * tower.width**2 + 2 * tower.width * tower.mlp_width


def _blocks(
    tower: TowerSpec, tokens: int, sharding: Sharding, sizes: ElementSizes, *, packed: bool = False
) -> TowerActivations:
    """Count the activations of a tower's blocks; packed tokens are a row of their own behind attention."""
    elements = tokens * tower.width
    log_sums = tokens * tower.heads * max(4, sizes.exact)
    attended = elements * sizes.attention
    products = elements * sizes.product
    copies = sizes.norm_copies and sharding.strategy not in _BF16_BLOCKS
    whole = (
        2 * _norm(tokens, tower.width, sizes, copies=copies)
        + 2 * products  # the results of the norms, which are inputs of the two products after them
        + 3 * attended  # query, key, value
        + attended  # the result of attention
        + (products if packed or sizes.attention != sizes.product else 0)  # that result, packed or cast
        + log_sums
        + 4 * products  # the input of GELU
        + 4 * products  # and its result
    )

    # A recomputed block keeps its input; a selective one also keeps the results of products and of attention.
    block_input = products
    results = (3 + 1 + 4 + 1) * products + attended + log_sums
    mode = sharding.activation_checkpointing
    recomputing = recomputing_blocks(tower.layers, mode)
    kept_by_one = block_input + (results if mode == "selective" else 0)
    kept = recomputing * kept_by_one + (tower.layers - recomputing) * whole

    # In the backward of one block there are its gradients, and its forward again if it is recomputed.
    weight_gradient = tower.width * tower.mlp_width * (sizes.product + sizes.exact)
    gradients = block_input + 5 * products + weight_gradient
    again = 0
    if recomputing:
        again = max(0, whole - kept_by_one)
        if sizes.product != sizes.exact:
            again += block_matrices(tower) * sizes.product

    return TowerActivations(kept, gradients + again)


def _norm(tokens: int, width: int, sizes: ElementSizes, *, copies: bool) -> int:
    """Count what a norm keeps: its input (the residual stream or a copy) and two statistics per token."""
    element = sizes.exact if copies else sizes.product
    return tokens * width * element + 2 * tokens * sizes.exact


def _feature(spec: ModelSpec, pairs: int, sizes: ElementSizes) -> int:
    """Count the feature before and after its normalisation."""
    return 2 * pairs * spec.embed_dim * sizes.exact
