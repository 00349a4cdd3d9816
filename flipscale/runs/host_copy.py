"""The host memory that checkpoints are written from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed._state_dict_utils import _create_cpu_state_dict
from torch.distributed.tensor import DTensor


class HostCopy:
    """A copy of a state, allocated when it is first taken and filled anew each time.

    New memory is slow: its pages come into being as they are first written, which takes many times as long
    as the copying. On a machine with a GPU it is pinned.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, state: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copy `state` and return the copy, which stays as it is until the next call."""
        taken: dict[str, Tensor] = {}
        for name, tensor in state:
            copy = self._tensors.get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = self._tensors[name] = _host_tensor_like(tensor)
            _held(copy).copy_(_held(tensor), non_blocking=True)
            taken[name] = copy
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return taken


def _host_tensor_like(tensor: Tensor) -> Tensor:
    """Memory for a tensor, or for this process's share of a DTensor, which keeps its mesh.

    torch's own: DTensor.from_local would move the share back to the device of the mesh.
    """
    return _create_cpu_state_dict({"": tensor}, pin_memory=torch.cuda.is_available())[""]


def _held(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
