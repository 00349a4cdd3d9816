"""The text tower: token ids to one feature (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flipscale.models.blocks import LayerNorm, Transformer, in_product_dtype
from flipscale.models.packing import Packing
from flipscale.models.presets import ModelSpec


class TextTransformer(nn.Module):
    """A text tower: token and position tables, blocks, final norm, pooling of one position, projection.

    It is the base class of the whole model, not a part of it, because OpenCLIP's CLIP keeps the text
    parameters at the top level of its state dict.

    Args:
        spec: The shape of the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        text = spec.text
        self.text_pool = text.pool
        self.context_length = text.context_length
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.transformer = Transformer(text, causal=text.causal)
        self.ln_final = LayerNorm(text.width, eps=text.norm_eps)
        self.text_projection = nn.Parameter(torch.empty(text.width, spec.embed_dim))

    def text_features(
        self, texts: Tensor, keep_tokens: Tensor | None = None, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """Return the features of texts, (B, embed_dim), not normalised.

        Padding is attended to like any token, as in FLIP's released code and in OpenCLIP.

        Args:
            texts: (B, context_length) int64 token ids.
            keep_tokens: (B, K) int64 slots that are embedded and computed, ascending, each at its own
                position; None for all. The pooled slot must be among them (see `visible_tokens`).
            lengths: The B numbers of tokens that are computed, if their features depend on no others (see
                `is_packable`); None for all. The features are the same.
        """
        assert texts.shape[1] == self.context_length, f"texts of shape {texts.shape}"

        positions = self.positional_embedding
        if lengths is not None:
            packing = Packing.of(texts, lengths)
            texts = texts.flatten().index_select(0, packing.tokens)
            x = self._stream(texts, F.embedding(packing.tokens % self.context_length, positions), packing)
            return self.ln_final(x.index_select(0, packing.ends)) @ self.text_projection

        if keep_tokens is not None:
            texts = texts.gather(1, keep_tokens)
            positions = F.embedding(keep_tokens, positions)

        x = self._stream(texts, positions)
        if self.text_pool == "first":
            pooled = x[:, 0]
        else:
            pooled = x[torch.arange(len(x), device=x.device), texts.argmax(dim=1)]
        return self.ln_final(pooled) @ self.text_projection

    def _stream(self, texts: Tensor, positions: Tensor, packing: Packing | None = None) -> Tensor:
        tokens = self.token_embedding(texts)
        return self.transformer(in_product_dtype(tokens + positions.to(tokens.dtype)), packing)
