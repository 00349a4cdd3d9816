"""The activations that the backward recomputes instead of keeping."""

from __future__ import annotations

from collections import defaultdict, deque
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import checkpoint as torch_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
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


def apply_activation_checkpointing(model: FLIP, mode: str, *, gathers_inside: bool = False) -> None:
    """Make the blocks of every tower recompute activations in the backward; nothing is renamed.

    Call it before compiling and before sharding the blocks.

    Args:
        model: The model; its blocks are changed in place.
        mode: "none"; "full" to keep only the input of each block; "selective" to keep also the results of
            attention and of matrix products; "every k" for full in the first block of every k in each tower.
        gathers_inside: Whether weights are gathered and freed within a block, as by ZeRO-3.
    """
    if mode == "none":
        return

    every = int(mode.removeprefix("every ")) if mode.startswith("every ") else 1
    library: Any = torch_checkpoint  # its functions are untyped
    # There is no dropout, so that the state of the random generators need not be kept.
    recompute: Any = partial(library.checkpoint, use_reentrant=False, preserve_rng_state=False)
    if mode == "selective":
        contexts = partial(library.create_selective_checkpoint_contexts, _policy)
        recompute = partial(recompute, context_fn=_kept_by_order if gathers_inside else contexts)

    for tower in model.transformers:
        for block in tower.resblocks[::every]:
            # Not a wrapping module: its name would become part of the parameters' names.
            block.recompute = recompute


def _kept_by_order() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """Return the contexts of the forward and of the recomputation.

    They look only at the operations whose results are kept. torch's own contexts compare all operations, and
    raise if ZeRO-3 allocates and frees weights in other places of the forward than of the recomputation.
    """
    kept: dict[Any, deque[Any]] = defaultdict(deque)
    return _Keeping(kept), _Repeating(kept)


class _Keeping(TorchDispatchMode):
    """Keeps the results of the operations in `_KEPT`, in order."""

    def __init__(self, kept: dict[Any, deque[Any]]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _KEPT:
            self._kept[func].append(pytree.tree_map_only(Tensor, Tensor.detach, result))
        return result


class _Repeating(TorchDispatchMode):
    """Returns the kept results in place of computing them again."""

    def __init__(self, kept: dict[Any, deque[Any]]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._kept[func].popleft() if func in _KEPT else func(*args, **(kwargs or {}))


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
