"""The whole model: both towers, the logit scale, and the logit bias where the loss has one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from flipscale.models.initialization import initial_value
from flipscale.models.presets import ModelSpec
from flipscale.models.text import TextTransformer
from flipscale.models.vision import VisionTransformer

MAX_LOG_SCALE = math.log(100)

Features = tuple[Tensor | None, Tensor | None, Unpack[tuple[Tensor, ...]]]
"""Image features, text features, and what makes logits of them: the scale and, for some models, the bias."""


class FLIP(TextTransformer):
    """Image and text towers with a joint embedding; state-dict names as OpenCLIP's CLIP.

    Every use goes through `forward`, since FSDP2 and ZeRO-3 gather parameters only around it. The
    constructor leaves the weights undefined: use `build_model`, `init_weights` or `load_state_dict`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.spec = spec
        self.visual = VisionTransformer(spec)
        # Shape (1,), not (): FSDP2 and DeepSpeed refuse scalar parameters.
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1)) if spec.logit_bias else None

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every parameter with its initial value, the same on every device; see `initial_value`."""
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, self.spec, seed))

    def forward(
        self, images: Tensor | None = None, texts: Tensor | None = None, keep: Tensor | None = None
    ) -> Features:
        """L2-normalised features of what is given, at least fp32, the logit scale, and the bias if any.

        Args:
            images: (B, 3, S, S), uint8, or floats that are normalised already.
            texts: (B, context_length) int64 token ids.
            keep: (B, K) int64 ids of the visible patches; None for all.

        Returns:
            Image features (B, embed_dim) or None, text features (B, embed_dim) or None, and the 0-d scale
            exp(clip(logit_scale, 0, ln 100)): outside the range the parameter gets no gradient (section 3).
            With `spec.logit_bias` a fourth: the 0-d bias, to be added to every logit.
        """
        image_features = None if images is None else _normalized(self.visual(images, keep))
        text_features = None if texts is None else _normalized(self.text_features(texts))
        log_scale = _at_least_fp32(self.logit_scale).clamp(0.0, MAX_LOG_SCALE)
        scale = log_scale.squeeze(0).exp()
        if self.logit_bias is None:
            return image_features, text_features, scale
        # A copy: a view would change with the update, and FSDP frees what it looks at.
        return image_features, text_features, scale, _at_least_fp32(self.logit_bias).squeeze(0).clone()

    def encode_image(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised image features (B, embed_dim); arguments as in `forward`."""
        return self(images=images, keep=keep)[0]

    def encode_text(self, texts: Tensor) -> Tensor:
        """Normalised text features (B, embed_dim); arguments as in `forward`."""
        return self(texts=texts)[1]


def build_model(spec: ModelSpec, seed: int = 0, device: torch.device | str = "cpu") -> FLIP:
    """A model with initial weights; on the device "meta" its shapes alone."""
    with torch.device("meta"):
        model = FLIP(spec)
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        model.init_weights(seed)
    return model


def _normalized(features: Tensor) -> Tensor:
    return F.normalize(_at_least_fp32(features), dim=-1)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
