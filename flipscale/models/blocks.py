"""The pre-norm transformer that all towers share. Its parameters have the names of OpenCLIP."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, empty, nn

from flipscale.models.packing import Packing
from flipscale.models.presets import TowerSpec


class LayerNorm(nn.LayerNorm):
    """A layer norm whose output has the dtype of its input, and whose statistics are at least fp32."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize the last dimension."""
        if input.dtype == self.weight.dtype == torch.bfloat16:
            # FSDP gathers the weights of blocks in bf16. The kernel computes in fp32 whatever it reads and
            # writes; autocast on CUDA would make fp32 copies of its input, weights and output.
            with torch.autocast(input.device.type, enabled=False):
                return super().forward(input)

        dtype = torch.promote_types(self.weight.dtype, input.dtype)
        weight = self.weight.to(dtype)
        bias = self.bias.to(dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps).to(input.dtype)


def in_product_dtype(x: Tensor) -> Tensor:
    """Return a tensor in the dtype that autocast gives to matrix products; unchanged without autocast.

    A residual stream begins with this dtype. Autocast leaves embeddings and sums in fp32.
    """
    kind = x.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if mixed else x


class Attention(nn.Module):
    """Multi-head self-attention, with biases in all projections and without dropout.

    Args:
        spec: The shape of the transformer.
        causal: Whether a token attends only to itself and the tokens before it.
    """

    def __init__(self, spec: TowerSpec, causal: bool) -> None:
        super().__init__()
        self.heads = spec.heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(empty(3 * spec.width, spec.width))
        self.in_proj_bias = nn.Parameter(empty(3 * spec.width))
        self.out_proj = nn.Linear(spec.width, spec.width)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """Return the attention output, in the shape of x: (B, T, width), or (N, width) of packed texts."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        if packing is not None:
            qkv = packing.padded(qkv)

        batch, tokens, _ = qkv.shape
        width = x.shape[-1]
        qkv = qkv.view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, head width)

        mixed = _attention(query, key, value, self.causal).transpose(1, 2).reshape(batch, tokens, width)
        return self.out_proj(mixed if packing is None else packing.packed(mixed))


def _attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    # torch's CPU kernel takes 3 times as long in bf16 as in fp32, forward and backward.
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=causal)
    return mixed.to(query.dtype)


class MLP(nn.Module):
    """Two linear layers with a GELU between them: (..., width) to the same shape."""

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.gelu = spec.gelu
        self.c_fc = nn.Linear(spec.width, spec.mlp_width)
        self.c_proj = nn.Linear(spec.mlp_width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the second layer."""
        x = self.c_fc(x)
        x = x * torch.sigmoid(1.702 * x) if self.gelu == "quick" else F.gelu(x, approximate=self.gelu)
        return self.c_proj(x)


class ResidualBlock(nn.Module):
    """A block of the transformer: x + attention(norm(x)), then x + MLP(norm(x)).

    Args:
        spec: The shape of the transformer.
        causal: Whether a token attends only to itself and the tokens before it.

    Attributes:
        recompute: Calls a function so that the backward computes its activations again, as torch's
            `checkpoint` does. None to keep them.
    """

    recompute: Callable[..., Tensor] | None

    def __init__(self, spec: TowerSpec, causal: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(spec.width, eps=spec.norm_eps)
        self.attn = Attention(spec, causal)
        self.ln_2 = LayerNorm(spec.width, eps=spec.norm_eps)
        self.mlp = MLP(spec)
        self.recompute = None

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """Return the residual stream after the block, (B, T, width), or (N, width) of packed texts."""
        # Inside of forward: torch.compile does not enter a checkpoint() that is around it.
        if self.recompute is None:
            return self._residual(x, packing)
        return self.recompute(self._residual, x, packing)

    def _residual(self, x: Tensor, packing: Packing | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), packing)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The residual blocks of one tower. Each is a unit of sharding, recomputation and compilation.

    Args:
        spec: The shape of the transformer.
        causal: Whether a token attends only to itself and the tokens before it.
    """

    def __init__(self, spec: TowerSpec, causal: bool = False) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(spec, causal) for _ in range(spec.layers))

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """Return the residual stream after all blocks, (B, T, width), or (N, width) of packed texts."""
        for block in self.resblocks:
            x = block(x, packing)
        return x
