"""The activations that the backward recomputes instead of keeping."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import CheckpointPolicy

from flipscale.models.flip import FLIP

_ATEN = torch.ops.aten

# The results that `selective` keeps. Norms, activations and sums are cheap to compute again.
_MATRIX_PRODUCTS = (_ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm)
_ATTENTION = (
    _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_efficient_attention,
    _ATEN._scaled_dot_product_cudnn_attention,
    _ATEN._scaled_dot_product_fused_attention_overrideable,
    _ATEN._scaled_dot_product_flash_attention_for_cpu,
)
_KEPT = frozenset(operator.default for operator in (*_MATRIX_PRODUCTS, *_ATTENTION))


def apply_activation_checkpointing(model: FLIP, mode: str) -> None:
    """Make the blocks of every tower recompute activations in the backward; nothing is renamed.

    Call it before compiling and before sharding the blocks.

    Args:
        model: The model; its blocks are changed in place.
        mode: "none"; "full" to keep only the input of each block; "selective" to keep also the results of
            attention and of matrix products; "every k" for full in the first block of every k in each tower.
    """
    if mode == "none":
        return

    every = int(mode.removeprefix("every ")) if mode.startswith("every ") else 1
    library: Any = torch_checkpoint  # its functions are untyped
    # There is no dropout, so that the state of the random generators need not be kept.
    recompute: Any = partial(library.checkpoint, use_reentrant=False, preserve_rng_state=False)
    if mode == "selective":
        recompute = partial(
            recompute, context_fn=partial(library.create_selective_checkpoint_contexts, _policy)
        )

    for tower in model.transformers:
        for block in tower.resblocks[::every]:
            # Not a wrapping module: its name would become part of the parameters' names.
            block.recompute = recompute


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
