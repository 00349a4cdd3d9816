"""What one operator costs: floating-point operations, bytes of device memory, and kernel launches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Operators that only describe memory in another way, and those that only reserve it.
_VIEWS = frozenset(
    (
        *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "diagonal", "expand"),
        *("is_pinned", "lift_fresh", "permute", "record_stream", "select", "set_", "slice", "split"),
        *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unfold", "unsqueeze"),
        *("view", "view_as_real"),
    )
)
_RESERVING = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"))
_COLLECTIVE_NAMESPACES = ("c10d", "_c10d_functional")


@dataclass(frozen=True)
class Cost:
    """The cost of one call of an operator on the device."""

    group: str
    """The kind of work: products, attention, norms, casts, copies, optimizer, elementwise."""
    flops: int
    """Floating-point operations of matrix products and attention."""
    bytes: int
    """Bytes that its inputs and outputs have."""
    exact: bool
    """Whether it computes in fp32 or fp64, which tensor cores do not help."""


def name_of(operator: Any) -> str:
    """Return the name of an operator without its namespace and overload."""
    return operator._schema.name.split("::")[1]


def is_collective(operator: Any) -> bool:
    """Return whether an operator moves data between processes."""
    return operator.namespace in _COLLECTIVE_NAMESPACES


@cache
def is_view(operator: Any) -> bool:
    """Return whether an operator neither allocates memory nor computes."""
    name = name_of(operator)
    return operator.namespace == "prim" or name in _VIEWS or name.startswith("sym_")


@cache
def launches_kernel(operator: Any) -> bool:
    """Return whether an operator starts a kernel if it is called on tensors of the device."""
    return not (is_view(operator) or is_collective(operator) or name_of(operator) in _RESERVING)


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def cost_of(
    operator: Any,
    args: tuple[Any, ...],
    settings: Mapping[str, Any],
    result: Any,
    on_device: Sequence[Tensor],
) -> Cost:
    """Return the cost of a call that has been made.

    Args:
        operator: The operator.
        args: Its arguments.
        settings: Its named arguments.
        result: What it returned.
        on_device: Its inputs and outputs on the device.
    """
    packet = operator._overloadpacket
    flops = 0
    if packet in flop_registry:
        flops = int(flop_registry[packet](*args, **settings, out_val=result))

    exact = all(tensor.element_size() >= 4 for tensor in on_device if tensor.dim() > 1)
    return Cost(_group(name_of(operator), flops), flops, _moved(on_device), exact)


def _moved(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors; an expanded one counts as the memory that it has."""
    return sum(
        min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes() or 1 << 62)
        for tensor in tensors
    )


def _group(name: str, flops: int) -> str:
    if "attention" in name:
        return "attention"
    if flops:
        return "products"
    if "layer_norm" in name:
        return "norms"
    if name == "_to_copy":
        return "casts"
    if name in ("clone", "copy_", "cat", "stack", "_foreach_copy_", "split_with_sizes_copy"):
        return "copies"
    if "adam" in name or "foreach" in name:
        return "optimizer"
    return "elementwise"
