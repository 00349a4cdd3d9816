"""The host memory from which checkpoints are written."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed._state_dict_utils import _create_cpu_state_dict  # see _host_tensor_like
from torch.distributed.tensor import DTensor


class HostCopy:
    """A copy of a state, which is allocated once and filled again by each call.

    Fresh memory is slow: the kernel maps its pages on first write, which takes many times as long as the copy
    itself. On a machine with a GPU the memory is pinned, and torch rounds each tensor up to a power of two.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, state: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copy `state` to the host.

        Args:
            state: Names and tensors; of a DTensor, only this process's share is copied.

        Returns:
            The copies by name, which stay unchanged until the next call.
        """
        taken: dict[str, Tensor] = {}
        for name, tensor in state:
            copy = self._tensors.get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = self._tensors[name] = _host_tensor_like(tensor)
            _local_part(copy).copy_(_local_part(tensor), non_blocking=True)
            taken[name] = copy

        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return taken


def _host_tensor_like(tensor: Tensor) -> Tensor:
    """Allocate memory for a tensor, or for this process's share of a DTensor, which keeps its mesh.

    The function is private to torch, but `DTensor.from_local` would move the share back to the mesh's device.
    """
    return _create_cpu_state_dict({"": tensor}, pin_memory=torch.cuda.is_available())[""]


def _local_part(tensor: Tensor) -> Tensor:
    """Return the share of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
