"""Watches every operator of a step: its cost, its memory, and whether the host waits or devices are mixed."""

from __future__ import annotations

import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from flipscale.rehearsal.calling_place import calling_place
from flipscale.rehearsal.collectives import CollectiveCounts
from flipscale.rehearsal.device_time import DeviceTime
from flipscale.rehearsal.live_memory import LiveMemory
from flipscale.rehearsal.operators import (
    cost_of,
    is_collective,
    is_view,
    launches_kernel,
    name_of,
    tensors_in,
)

_aten: Any = torch.ops.aten

# The host needs their values, or the number of their results, to continue.
_WAITING = frozenset(
    (
        _aten.item.default,
        _aten.is_nonzero.default,
        _aten.nonzero.default,
        _aten.masked_select.default,
        _aten.equal.default,
        _aten.allclose.default,
        _aten.bincount.default,
        _aten.repeat_interleave.Tensor,
        _aten.unique_consecutive.default,
        _aten._unique2.default,
    )
)
# Outside of the loss they are called for the norm of the gradient only.
_NORMS = frozenset((_aten._foreach_norm.Scalar, _aten.linalg_vector_norm.default))


class Recorder(TorchDispatchMode):
    """Records what is run while it is entered.

    Args:
        device: The type of the device that is watched.
        time: The model of the device's time.
        memory: The device's memory, which is followed before and after as well.

    Attributes:
        problems: What makes the host wait or mixes devices, with file and line, and how often.
        launches: Kernels that were started, by kind of work.
        flops: Floating-point operations of products and attention.
        bytes: Bytes of device memory that kernels read or write, by kind of work.
        seconds: The device's time by kind of work.
        collectives: The collectives.
    """

    def __init__(self, device: str, time: DeviceTime, memory: LiveMemory) -> None:
        super().__init__()
        self._device = device
        self._time = time
        self._memory = memory
        self.problems: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.flops = 0
        self.bytes: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.collectives = CollectiveCounts()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and record it."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # a DTensor calls again with its local tensors
        if func is _aten._local_scalar_dense.default and args[0].device.type == self._device:
            self.waits("item waits for the device")
            # No number is known. Libraries ask whether a norm is finite, and count overflows.
            return 1.0 if args[0].is_floating_point() else 0
        if func is _aten._pin_memory.default:
            return args[0]  # fake tensors have no memory to pin

        # Note first what fake tensors cannot answer: the call below raises.
        settings = kwargs or {}
        if func in _WAITING and self._device in {tensor.device.type for tensor in tensors_in(args)}:
            self.waits(f"{name_of(func)} waits for the device")
        elif func is _aten.index.Tensor and _by_mask(args[1]):
            self.waits("an index by a mask waits for the device")

        result = func(*args, **settings)
        if is_view(func):
            return result

        inputs, outputs = tensors_in((args, settings)), tensors_in(result)
        for tensor in outputs:
            if tensor.device.type == self._device and not isinstance(tensor, DTensor):
                self._memory.add(tensor)
        self._look(func, args, settings, inputs, outputs, result)
        return result

    def waits(self, what: str) -> None:
        """Record that the host waits for the device."""
        self.problems[f"{what}{calling_place()}"] += 1

    def _look(
        self,
        operator: Any,
        args: tuple[Any, ...],
        settings: dict[str, Any],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        result: Any,
    ) -> None:
        on_device = [tensor for tensor in (*inputs, *outputs) if tensor.device.type == self._device]
        if self._device != "cpu":
            self._look_for_waits(operator, args, settings, inputs, outputs)

        if is_collective(operator):
            self.collectives.add(operator, args, [*inputs, *outputs], blocking=_waited_for(args))
        elif on_device and launches_kernel(operator):
            if operator in _NORMS:
                self._memory.relabel(inputs, "gradients")
            cost = cost_of(operator, args, settings, result, on_device)
            group = "loss" if _in_the_loss() else cost.group
            self.launches[group] += 1
            self.flops += cost.flops
            self.bytes[group] += cost.bytes
            self.seconds[group] += self._time.seconds(cost, inputs)

    def _look_for_waits(
        self,
        operator: Any,
        args: tuple[Any, ...],
        settings: dict[str, Any],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> None:
        kinds = {tensor.device.type for tensor in inputs if tensor.dim() > 0}
        if operator is _aten._to_copy.default and args[0].device.type != outputs[0].device.type:
            if not settings.get("non_blocking"):
                self.waits(f"a blocking copy from {args[0].device.type} to {outputs[0].device.type}")
        elif operator is _aten.copy_.default and args[0].device.type != args[1].device.type:
            if not (args[2] if len(args) > 2 else settings.get("non_blocking")):
                self.waits(f"a blocking copy from {args[1].device.type} to {args[0].device.type}")
        elif is_collective(operator) and "cpu" in kinds:
            self.waits(f"{name_of(operator)} of a tensor on the CPU")
        elif len(kinds) > 1:
            self.waits(f"{name_of(operator)} of tensors on {' and '.join(sorted(kinds))}")


def _by_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _waited_for(args: Sequence[Any]) -> bool:
    """Return whether nothing of the step runs while the collective that is being called does."""
    if _in_the_loss():
        # The only flag is asyncOp; its default, true, is left out of the arguments.
        return any(value is False for value in args)
    # Forward and backward have other work meanwhile. What follows them, such as the norm of the gradient and
    # DeepSpeed's gather of updated weights, has none. The engine runs a GPU's backward in threads of its own.
    in_backward = threading.current_thread() is not threading.main_thread()
    return not (in_backward or _below("torch/autograd/graph.py", "torch/nn/modules/module.py"))


def _in_the_loss() -> bool:
    return _below("/flipscale/losses/")


def _below(*files: str) -> bool:
    """Return whether a function of one of these files or directories is running."""
    frame = sys._getframe(1)
    while frame is not None:
        if any(file in frame.f_code.co_filename for file in files):
            return True
        frame = frame.f_back
    return False
