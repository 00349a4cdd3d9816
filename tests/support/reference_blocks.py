"""torch's own pre-norm encoder layers with the weights of a tower: an independent transformer for tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flipscale.models.blocks import Transformer
from flipscale.models.presets import TowerSpec

NAMES = {
    "self_attn": "attn",
    "linear1": "mlp.c_fc",
    "linear2": "mlp.c_proj",
    "norm1": "ln_1",
    "norm2": "ln_2",
}


def run_blocks(transformer: Transformer, spec: TowerSpec, x: Tensor, *, causal: bool = False) -> Tensor:
    """What `transformer` should make of (B, T, width)."""
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if causal else None
    for block in transformer.resblocks:
        layer = nn.TransformerEncoderLayer(
            spec.width,
            spec.heads,
            dim_feedforward=4 * spec.width,
            dropout=0.0,
            activation=lambda h: F.gelu(h, approximate=spec.gelu),
            layer_norm_eps=spec.norm_eps,
            batch_first=True,
            norm_first=True,
        )
        ours = block.state_dict()
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                first = name.split(".")[0]
                parameter.copy_(ours[name.replace(first, NAMES[first], 1)])
        x = layer(x, src_mask=mask, is_causal=causal)
    return x
