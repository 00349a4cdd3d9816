"""A stand-in for DistributedDataParallel, whose reducer in C++ reads the values of tensors."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_FIRST_BUCKET = 2**20
_BUCKET = 25 * 2**20


class BucketedCopies(nn.Module):
    """Reduces gradients as DistributedDataParallel does: bucket by bucket while the backward runs.

    Gradients are views into buckets that live as long as the model (`gradient_as_bucket_view`). The first
    bucket is small, and the parameters fill the buckets from the last one to the first
    (torch/csrc/distributed/c10d/reducer.cpp).

    Args:
        module: The model.
        bucket_cap_mb: Bytes of a bucket in MiB; default: 25.
        settings: The other settings of DistributedDataParallel, which change no bytes here.
    """

    def __init__(self, module: nn.Module, *, bucket_cap_mb: float | None = None, **settings: Any) -> None:
        super().__init__()
        self.module = module
        self._synchronizes = True

        cap = _BUCKET if bucket_cap_mb is None else int(bucket_cap_mb * 2**20)
        for parameters in _in_buckets(list(module.parameters()), cap):
            _Bucket(parameters, self)

    @property
    def synchronizes(self) -> bool:
        """Whether the backward reduces gradients."""
        return self._synchronizes

    def forward(self, *args: Any, **settings: Any) -> Any:
        """Run the model's forward."""
        return self.module(*args, **settings)

    @contextmanager
    def no_sync(self) -> Generator[None]:
        """Let gradients add up without a reduction."""
        self._synchronizes = False
        try:
            yield
        finally:
            self._synchronizes = True


class _Bucket:
    """The memory of the gradients of some parameters, which is reduced as soon as all are there."""

    def __init__(self, parameters: list[nn.Parameter], owner: BucketedCopies) -> None:
        self._owner = owner
        self._parameters = parameters
        self._missing = len(parameters)

        size = sum(parameter.numel() for parameter in parameters)
        self._memory = parameters[0].new_zeros(size)
        sizes = [parameter.numel() for parameter in parameters]
        views = torch.split(self._memory, sizes)
        self._views: dict[nn.Parameter, Tensor] = dict(zip(parameters, views, strict=True))
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, parameter: Tensor) -> None:
        if not self._owner.synchronizes:
            return

        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        view = self._views[parameter]
        view.copy_(parameter.grad.flatten())
        parameter.grad = view.view_as(parameter)

        self._missing -= 1
        if self._missing == 0:
            self._missing = len(self._parameters)
            self._memory.div_(dist.get_world_size())
            dist.all_reduce(self._memory)


def _in_buckets(parameters: list[nn.Parameter], cap: int) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = [[]]
    limit, filled = min(_FIRST_BUCKET, cap), 0
    for parameter in reversed(parameters):
        if buckets[-1] and filled >= limit:
            buckets.append([])
            limit, filled = cap, 0
        buckets[-1].append(parameter)
        filled += parameter.numel() * parameter.element_size()
    return buckets
