"""The memory that a piece of code holds: the storages that its operations made and that still live."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """A mode that sees the storage of every result of every operation and adds up those that still live.

    Attributes:
        peak: The most bytes that were held after any operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, StorageWeakRef] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))

        new = False
        for leaf in tree_leaves(result):
            if isinstance(leaf, DTensor):
                leaf = leaf._local_tensor  # a DTensor's own storage has the size of the whole and no memory
            if isinstance(leaf, Tensor) and not leaf.is_meta:
                storage = leaf.untyped_storage()
                if storage._cdata not in self._storages:
                    self._storages[storage._cdata] = StorageWeakRef(storage)
                    new = True

        if new:
            self.peak = max(self.peak, self.held())
        return result

    def held(self, without: Iterable[Tensor] = ()) -> int:
        """Return the bytes that live now, except for the storages of the tensors `without`."""
        left_out = {tensor.untyped_storage()._cdata for tensor in without}

        total = 0
        for key, reference in list(self._storages.items()):
            # The size is read again, since sharding libraries free a storage by shrinking it to nothing.
            storage: Any = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is None:
                del self._storages[key]
            elif key not in left_out:
                total += storage.nbytes()

        return total
