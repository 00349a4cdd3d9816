"""The whole model: both towers, the logit scale, and the logit bias if the loss has one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flipscale.models.blocks import Transformer
from flipscale.models.initialization import initial_value
from flipscale.models.inputs import Inputs
from flipscale.models.masking import hidden_patches
from flipscale.models.presets import ModelSpec
from flipscale.models.reconstruction import Reconstruction
from flipscale.models.text import TextTransformer
from flipscale.models.vision import VisionTransformer

MAX_LOG_SCALE = math.log(100)


class Features(NamedTuple):
    """The outputs of the model for a batch; None for outputs whose inputs are missing or not requested."""

    images: Tensor | None
    """(B, embed_dim), L2-normalised, at least fp32."""
    texts: Tensor | None
    """(B, embed_dim), L2-normalised, at least fp32."""
    scale: Tensor
    """0-d factor of the logits, exp(clip(logit_scale, 0, ln 100)). Outside the range the parameter gets no
    gradient (paper, section 3)."""
    bias: Tensor | None
    """0-d summand of every logit; only with `spec.logit_bias`."""
    reconstruction: Tensor | None
    """0-d loss of the decoder, if requested; only with `spec.decoder`."""


class FLIP(TextTransformer):
    """Image and text towers with a joint embedding, with the state-dict names of OpenCLIP's CLIP.

    Every use goes through `forward`, since FSDP2 and ZeRO-3 gather parameters only around it. The
    constructor leaves the weights undefined: use `build_model`, `init_weights` or `load_state_dict`.

    Args:
        spec: The shape of the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.spec = spec
        self.visual = VisionTransformer(spec)
        # Shape (1,), not (): FSDP2 and DeepSpeed refuse scalar parameters.
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1)) if spec.logit_bias else None
        self.reconstruction = None if spec.decoder is None else Reconstruction(spec)

    @property
    def transformers(self) -> tuple[Transformer, ...]:
        """The transformers of `spec.towers`. Their blocks are recomputed, compiled and sharded one by one."""
        towers = (self.visual.transformer, self.transformer)
        return towers if self.reconstruction is None else (*towers, self.reconstruction.transformer)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every parameter with its initial value, the same on every device; see `initial_value`.

        Args:
            seed: Seed of the run.
        """
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, self.spec, seed))

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        """Return the features of the inputs, and the scale and bias that make logits of them.

        Args:
            inputs: Images, texts or both, with the masks of their patches and tokens.
            reconstruct: Also compute the decoder's loss, if the model has a decoder. If nothing is hidden,
                that loss is zero, with gradients of zero.
        """
        images, texts, keep, keep_tokens, lengths = inputs
        tokens: Tensor | None = None
        image_features: Tensor | None = None
        text_features: Tensor | None = None
        reconstruction: Tensor | None = None

        if images is not None:
            tokens = self.visual.tokens(images, keep)
            image_features = _normalized(self.visual.feature(tokens))
        if texts is not None:
            text_features = _normalized(self.text_features(texts, keep_tokens, lengths))

        # The decoder comes last, so that the backward begins with it.
        if reconstruct and self.reconstruction is not None and images is not None and tokens is not None:
            reconstruction = self._reconstruction_loss(self.reconstruction, tokens, images, keep)

        scale = _at_least_fp32(self.logit_scale).clamp(0.0, MAX_LOG_SCALE).squeeze(0).exp()
        # A copy: a view would change with the update, and FSDP frees the storage of a view.
        bias = None if self.logit_bias is None else _at_least_fp32(self.logit_bias).squeeze(0).clone()
        return Features(image_features, text_features, scale, bias, reconstruction)

    def _reconstruction_loss(
        self, decoder: Reconstruction, tokens: Tensor, images: Tensor, keep: Tensor | None
    ) -> Tensor:
        if keep is None:
            # The sharding libraries expect a gradient of each parameter. One image with one visible patch
            # gives the decoder's parameters gradients of zero.
            first = torch.zeros(1, 1, dtype=torch.int64, device=images.device)
            return 0.0 * self._reconstruction_loss(decoder, tokens[:1, :2].detach(), images[:1], first)

        hidden = hidden_patches(keep, self.spec.vision.patches)
        return decoder(tokens, keep, hidden, self.visual.conv1.pixels(images, hidden))

    def encode_image(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return normalised image features, (B, embed_dim); arguments as in `Inputs`."""
        return self(Inputs(images=images, keep=keep)).images

    def encode_text(self, texts: Tensor, keep_tokens: Tensor | None = None) -> Tensor:
        """Return normalised text features, (B, embed_dim); arguments as in `Inputs`."""
        return self(Inputs(texts=texts, keep_tokens=keep_tokens)).texts


def build_model(spec: ModelSpec, seed: int = 0, device: torch.device | str = "cpu") -> FLIP:
    """Return a model with initial weights.

    Args:
        spec: The shape of the model.
        seed: Seed of the initial weights.
        device: The device of the model; on "meta" it has shapes only.
    """
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
