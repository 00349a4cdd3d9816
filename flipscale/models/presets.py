"""Model shapes: the towers of FLIP (paper, table 9), their CLIP counterparts, and small ones of each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from flipscale.errors import UserError

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
OPENAI_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Triple = (0.26862954, 0.26130258, 0.27577711)

BERT_VOCABULARY = 30522
CLIP_VOCABULARY = 49408


MOST_PATCHES = 65_536
"""Patches of an image: one of 4096 pixels in patches of 16."""


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """One pre-norm transformer; its MLP is 4 times as wide as the residual stream."""

    width: int
    layers: int
    heads: int
    norm_eps: float = 1e-6
    gelu: Literal["tanh", "none", "quick"] = "tanh"
    """The approximation, as torch names it. "none" is the exact (erf) GELU; "quick" is x sigmoid(1.702 x), as
    in OpenAI's CLIP."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads; change one of them")

    @property
    def mlp_width(self) -> int:
        """The width of the MLP between its two layers."""
        return 4 * self.width


@dataclass(frozen=True, kw_only=True)
class VisionSpec(TowerSpec):
    """A vision transformer over square images (paper, section 3.1). Sizes in pixels."""

    image_size: int
    patch_size: int
    pool: Literal["patch_mean", "class_token"] = "patch_mean"
    positions: Literal["sincos", "learned"] = "sincos"
    patch_bias: bool = True
    norm_before: bool = False
    """Whether a norm is between the embedding and the first block, as in CLIP but not in FLIP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        below = self.image_size // self.patch_size * self.patch_size
        if below != self.image_size or below == 0:
            near = [str(size) for size in (below, below + self.patch_size) if size]
            raise UserError(
                f"image size {self.image_size} is not a multiple of the patch size {self.patch_size}; "
                f"the nearest that work: {', '.join(near)}"
            )
        if self.patches > MOST_PATCHES:
            raise UserError(
                f"images of {self.image_size} pixels have {self.patches:,} patches of {self.patch_size} "
                f"pixels, and the most is {MOST_PATCHES:,}; lower image_size or raise patch_size"
            )
        if self.positions == "sincos" and self.width % 4:
            raise UserError(f"width {self.width} must be a multiple of 4 for 2-D sin-cos positions")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class TextSpec(TowerSpec):
    """A text transformer with learned positions (paper, section 3.1)."""

    context_length: int
    vocab_size: int
    causal: bool = False
    pool: Literal["first", "argmax"] = "first"
    """The position that is the feature: the first ([CLS]), or that of the largest id (CLIP's end of text)."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Both towers, the joint embedding, and the normalisation of pixels in [0, 1]."""

    name: str
    family: Literal["flip", "clip"]
    """The initialisation: that of the FLIP paper, or that of OpenCLIP."""
    embed_dim: int
    vision: VisionSpec
    text: TextSpec
    mean: Triple
    std: Triple
    logit_bias: bool = False
    """Whether the logits have a learned bias, for the sigmoid loss; the scale then begins as in SigLIP."""
    decoder: TowerSpec | None = None
    """The transformer that reconstructs hidden patches while training (paper, table 1f)."""

    @property
    def towers(self) -> tuple[TowerSpec, ...]:
        """Every transformer, in the order of `FLIP.transformers`."""
        return (self.vision, self.text) if self.decoder is None else (self.vision, self.text, self.decoder)


_Size = tuple[int, int, int]  # width, layers, heads


def _flip(name: str, image: int, patch: int, vision: _Size, text: _Size, embed_dim: int) -> ModelSpec:
    width, layers, heads = vision
    vision_spec = VisionSpec(width=width, layers=layers, heads=heads, image_size=image, patch_size=patch)

    width, layers, heads = text
    text_spec = TextSpec(
        width=width, layers=layers, heads=heads, context_length=32, vocab_size=BERT_VOCABULARY
    )

    return ModelSpec(
        name=name,
        family="flip",
        embed_dim=embed_dim,
        vision=vision_spec,
        text=text_spec,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _clip(flip: ModelSpec) -> ModelSpec:
    """Return stock OpenCLIP of the same shape, down to its tokenizer and pixel statistics."""
    vision = replace(
        flip.vision,
        norm_eps=1e-5,
        gelu="none",
        pool="class_token",
        positions="learned",
        patch_bias=False,
        norm_before=True,
    )
    text = replace(
        flip.text,
        norm_eps=1e-5,
        gelu="none",
        context_length=77,
        vocab_size=CLIP_VOCABULARY,
        causal=True,
        pool="argmax",
    )

    return ModelSpec(
        name=flip.name.replace("vit_", "clip_"),
        family="clip",
        embed_dim=flip.embed_dim,
        vision=vision,
        text=text,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
    )


_FLIP_PRESETS = (
    _flip("vit_b32", 224, 32, (768, 12, 12), (512, 12, 8), 512),
    _flip("vit_b16", 224, 16, (768, 12, 12), (512, 12, 8), 512),
    _flip("vit_l16", 224, 16, (1024, 24, 16), (768, 12, 12), 768),
    _flip("vit_l14", 224, 14, (1024, 24, 16), (768, 12, 12), 768),
    _flip("vit_h14", 224, 14, (1280, 32, 16), (1024, 24, 16), 1024),
    _flip("vit_tiny_p8", 64, 8, (128, 4, 2), (128, 2, 2), 128),
    _flip("vit_micro_p8", 32, 8, (64, 2, 1), (64, 2, 1), 64),
)

PRESETS: dict[str, ModelSpec] = {
    spec.name: spec for spec in (*_FLIP_PRESETS, *(_clip(flip) for flip in _FLIP_PRESETS))
}


def preset(
    name: str,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    vocab_size: int | None = None,
    context_length: int | None = None,
    logit_bias: bool = False,
    decoder: tuple[int, int, int] | None = None,
) -> ModelSpec:
    """Return a preset, with other sizes instead of its own if they are not None.

    Args:
        name: The name of the preset.
        image_size: Side of the images in pixels.
        patch_size: Side of a patch in pixels.
        vocab_size: The number of token ids.
        context_length: The number of tokens per text.
        logit_bias: Whether the logits have a learned bias.
        decoder: Width, layers and heads of the transformer that reconstructs hidden patches, if any.

    Raises:
        UserError: If the name is unknown, or the image size is not a multiple of the patch size.
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no model {name!r}; did you mean {nearest!r}? All: {', '.join(PRESETS)}")

    spec = resized(PRESETS[name], image_size, patch_size)
    text = replace(
        spec.text,
        vocab_size=vocab_size or spec.text.vocab_size,
        context_length=context_length or spec.text.context_length,
    )

    tower = None
    if decoder is not None:
        width, layers, heads = decoder
        vision = spec.vision
        tower = TowerSpec(width=width, layers=layers, heads=heads, norm_eps=vision.norm_eps, gelu=vision.gelu)
    return replace(spec, text=text, logit_bias=logit_bias, decoder=tower)


def resized(spec: ModelSpec, image_size: int | None = None, patch_size: int | None = None) -> ModelSpec:
    """Return the same model with other sizes instead of its own if they are not None.

    Args:
        spec: The shape of the model.
        image_size: Side of the images in pixels.
        patch_size: Side of a patch in pixels.

    Raises:
        UserError: If the image size is not a multiple of the patch size.
    """
    image = image_size or spec.vision.image_size
    patch = patch_size or spec.vision.patch_size
    return replace(spec, vision=replace(spec.vision, image_size=image, patch_size=patch))
