"""The device memory that is allocated at each moment of a step, its peak, and what it was for."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

_BLOCK = 512
"""Bytes to which the caching allocator rounds."""
_NOTED_AGAIN = 1.002
"""A higher peak is looked at again if it is so much higher: each look counts every allocation."""

# The innermost call in one of these files decides what memory is for.
_OWNERS: tuple[tuple[str, str], ...] = (
    ("/flipscale/rehearsal/bucketed_copies", "gradients"),
    ("/flipscale/sharding/optimizer", "moments"),
    ("/torch/optim/", "moments"),
)
_OWNERS_IN_A_STEP: tuple[tuple[str, str], ...] = (
    *_OWNERS,
    ("/flipscale/losses/", "loss"),
    ("/flipscale/models/", "activations"),
    ("/torch/distributed/fsdp/", "gathered"),
    ("/deepspeed/", "gathered"),
    ("/fairscale/", "gathered"),
)


class _Allocation:
    """One block of device memory."""

    __slots__ = ("label", "size")

    def __init__(self, label: str) -> None:
        self.label = label
        self.size = 0


class LiveMemory:
    """Follows the storages on the device.

    Attributes:
        now: Bytes that are allocated.
        peak: The most bytes that were allocated at once since `restart`.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._label: str | None = None
        self._owners = _OWNERS
        self._otherwise = "weights"
        self._alive: dict[int, _Allocation] = {}
        self._at_peak: list[tuple[_Allocation, int]] = []
        self._noted = 0

    def add(self, tensor: Tensor) -> None:
        """Follow the storage of a tensor on the device, if it is new."""
        storage = tensor.untyped_storage()
        key = _key(storage)
        if key in self._alive:
            return
        self._alive[key] = _Allocation(self._label or self._owner())
        self._resize(key, storage.nbytes())
        weakref.finalize(storage, self._free, key)

    def relabel(self, tensors: Iterable[Tensor], label: str) -> None:
        """Say what the memory of tensors is for."""
        for tensor in tensors:
            allocation = self._alive.get(_key(tensor.untyped_storage()))
            if allocation is not None:
                allocation.label = label

    @contextmanager
    def labelled(self, label: str) -> Generator[None]:
        """Give all memory that is allocated meanwhile one label."""
        self._label = label
        try:
            yield
        finally:
            self._label = None

    @contextmanager
    def following_resizes(self) -> Generator[None]:
        """Notice that FSDP frees and fills storages in place."""
        resize: Any = torch.UntypedStorage.resize_

        def followed(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if _key(storage) in self._alive:
                self._resize(_key(storage), size)
            return result

        with mock.patch.object(torch.UntypedStorage, "resize_", followed):
            yield

    def begin_steps(self) -> None:
        """Say that the model is built: what is allocated from here on is for a step."""
        self._owners = _OWNERS_IN_A_STEP
        self._otherwise = "activations"

    def restart(self) -> None:
        """Look for a new peak from here on."""
        self.peak, self._noted = self.now, 0
        self._note()

    def at_peak(self) -> dict[str, int]:
        """Return the bytes at the peak by what they were for."""
        by_label: Counter[str] = Counter()
        for allocation, size in self._at_peak:
            by_label[allocation.label] += size
        return dict(by_label)

    def _resize(self, key: int, size: int) -> None:
        rounded = -(-size // _BLOCK) * _BLOCK
        allocation = self._alive[key]
        self.now += rounded - allocation.size
        allocation.size = rounded
        if self.now > self.peak:
            self.peak = self.now
            if self.now > _NOTED_AGAIN * self._noted:
                self._note()

    def _note(self) -> None:
        self._noted = self.now
        self._at_peak = [(allocation, allocation.size) for allocation in self._alive.values()]

    def _free(self, key: int) -> None:
        allocation = self._alive.pop(key, None)
        if allocation is not None:
            self.now -= allocation.size

    def _owner(self) -> str:
        """Return what memory is for that is allocated now, by the code that asks for it."""
        frame = sys._getframe()
        while frame is not None:
            path = frame.f_code.co_filename
            for part, label in self._owners:
                if part in path:
                    return label
            if frame.f_code.co_name == "_create_moments":
                return "moments"
            frame = frame.f_back
        return self._otherwise


def _key(storage: torch.UntypedStorage) -> int:
    return storage._cdata  # pyrefly: ignore[protected-access]: torch has no public way
