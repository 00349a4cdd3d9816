"""The cost of a forward pass, from the shapes. One multiply-accumulate (MAC) is two FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from flipscale.models.flip import build_model
from flipscale.models.masking import visible_count
from flipscale.models.packing import is_packable
from flipscale.models.presets import ModelSpec, TowerSpec


@dataclass(frozen=True)
class ForwardMacs:
    """MACs of the forward pass of one image-text pair."""

    image: int
    """The image tower with its projection."""
    text: int
    """The text tower with its projection."""
    decoder: int = 0
    """The reconstruction, if patches are hidden. In phases that hide none, the decoder runs on one image per
    batch, because the sharding libraries need it to; that is left out."""

    @property
    def total(self) -> int:
        """MACs of both towers and the decoder."""
        return self.image + self.text + self.decoder


@dataclass(frozen=True)
class ParameterCount:
    """The number of trainable parameters; the fixed sin-cos positions do not count."""

    vision: int
    """The image tower without its projection."""
    text: int
    """The text tower without its projection."""
    total: int
    """Everything: towers, both projections, the logit scale and bias, the decoder."""
    decoder: int = 0
    """The decoder that reconstructs hidden patches."""


CAPTION_TOKENS = 25
"""Tokens up to the end of a caption, the start and end tokens included: about the mean of LAION's captions in
CLIP's tokens."""


def forward_macs(
    spec: ModelSpec,
    mask_ratio: float = 0.0,
    text_mask_ratio: float = 0.0,
    *,
    embed_hidden: bool = False,
    caption_tokens: float | None = None,
) -> ForwardMacs:
    """Count the MACs of one pair: patch embedding, blocks with the products of attention, projections.

    Norms, GELU and softmax are left out, and causal attention counts as a whole, as is usual.

    Args:
        spec: The model.
        mask_ratio: Share of the patches hidden.
        text_mask_ratio: Share of the caption's slots hidden.
        embed_hidden: Count the paper's code, which embeds every patch and then drops the hidden ones.
        caption_tokens: Mean tokens up to the end of a caption, if no others are computed where they reach no
            feature (see `flipscale.models.packing`); None if whole captions are.
    """
    vision = spec.vision
    text = spec.text
    visible = visible_count(vision.patches, mask_ratio)
    embedded = vision.patches if embed_hidden else visible
    embedding = embedded * 3 * vision.patch_size**2 * vision.width
    tokens: float = visible_count(text.context_length, text_mask_ratio)
    if caption_tokens is not None and is_packable(text, text_mask_ratio):
        tokens = min(caption_tokens, text.context_length)

    return ForwardMacs(
        image=embedding + _blocks(vision, visible + 1) + vision.width * spec.embed_dim,
        text=_blocks(text, tokens) + text.width * spec.embed_dim,
        decoder=_decoder(spec, visible) if mask_ratio else 0,
    )


def training_flops(
    spec: ModelSpec,
    samples: int,
    mask_ratio: float,
    text_mask_ratio: float = 0.0,
    *,
    forward_twice: bool = False,
    caption_tokens: float | None = None,
) -> int:
    """Return the FLOPs of training: the forward, and twice as much for the backward, without recomputation.

    Args:
        spec: The model.
        samples: Image-text pairs to train on.
        mask_ratio: Share of the patches hidden.
        text_mask_ratio: Share of the caption's slots hidden.
        forward_twice: Count GradCache's second forward of both towers.
        caption_tokens: As in `forward_macs`.
    """
    macs = forward_macs(spec, mask_ratio, text_mask_ratio, caption_tokens=caption_tokens)
    again = macs.image + macs.text if forward_twice else 0
    return 2 * (3 * macs.total + again) * samples


@cache
def parameter_count(spec: ModelSpec) -> ParameterCount:
    """Count the trainable parameters on the model itself, without allocating it."""
    sizes = {name: p.numel() for name, p in build_model(spec, device="meta").named_parameters()}

    outside = sum(
        sizes.get(name, 0) for name in ("visual.proj", "text_projection", "logit_scale", "logit_bias")
    )
    vision = sum(size for name, size in sizes.items() if name.startswith("visual.")) - sizes["visual.proj"]
    decoder = sum(size for name, size in sizes.items() if name.startswith("reconstruction."))
    total = sum(sizes.values())
    text = total - outside - vision - decoder

    return ParameterCount(vision=vision, text=text, total=total, decoder=decoder)


def _decoder(spec: ModelSpec, visible: int) -> int:
    """Count the MACs of models/reconstruction.py: input layer, blocks over all patches, hidden pixels."""
    decoder = spec.decoder
    vision = spec.vision
    if decoder is None:
        return 0

    pixels = (vision.patches - visible) * decoder.width * 3 * vision.patch_size**2
    return (visible + 1) * vision.width * decoder.width + _blocks(decoder, vision.patches + 1) + pixels


def _blocks(tower: TowerSpec, tokens: float) -> int:
    matrices = 4 * tower.width**2 + 2 * tower.width * tower.mlp_width  # q, k, v, output; MLP
    attention = 2 * tokens * tower.width  # scores and weighted sum, for each token
    return round(tower.layers * tokens * (matrices + attention))
