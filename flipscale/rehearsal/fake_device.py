"""A GPU on which nothing is computed: fake tensors of the device "cuda", idle streams and events.

Shapes, dtypes, devices, the order of operators and the bytes are real. What is not: numbers, races of
streams, the kernels, NCCL.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from flipscale.models.flip import FLIP
from flipscale.rehearsal.bucketed_copies import BucketedCopies
from flipscale.rehearsal.calling_place import calling_place
from flipscale.rehearsal.gpu_properties import CAPABILITY, PROPERTIES
from flipscale.sharding import ddp, fsdp

_cuda: Any = torch.cuda
_attention: Callable[..., Tensor] = F.scaled_dot_product_attention


class _Event:
    """An event that has always happened."""

    def __init__(self, *args: Any, **settings: Any) -> None: ...

    def record(self, *args: Any) -> _Event:
        return self

    def wait(self, *args: Any) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: _Event) -> float:
        return 0.0


class _Stream:
    """A stream on which all work is done at once; that the host waits for it is noted."""

    def __init__(self, waits: list[str]) -> None:
        self.device = torch.device("cuda", 0)
        self._waits = waits

    def synchronize(self) -> None:
        self._waits.append(f"stream.synchronize{calling_place()}")

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False


@contextmanager
def fake_device(device: torch.device, waits: list[str]) -> Generator[None]:
    """Make all new tensors fake ones; if the device is "cuda", let torch believe that there is a GPU.

    Args:
        device: The device of the rehearsal.
        waits: Gets an entry each time that the host would wait for the device.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # it imports what lists torch.cuda's own functions
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        if device.type == "cuda":
            streams = _Streams(waits)
            for name, value in _of_torch_cuda(streams, waits).items():
                replace(_cuda, name, value)
            for name in ("range_push", "range_pop"):
                replace(_cuda.nvtx, name, _nothing)
            replace(_cuda, "is_available", _is_available)
            replace(_cuda.amp.common, "amp_definitely_not_available", lambda: False)
            replace(torch.accelerator, "current_stream", streams.current)
            replace(torch.Tensor, "record_stream", _nothing)
            replace(F, "scaled_dot_product_attention", _scaled_dot_product_attention)

        replace(nn.Module, "_apply", _apply)
        replace(fsdp, "init_device_mesh", _with_real_numbers(fsdp.init_device_mesh))
        replace(ddp, "DistributedDataParallel", BucketedCopies)
        # Initial values cost minutes on one core, and nobody reads them.
        replace(fsdp, "initial_value", _nothing)
        replace(fsdp, "write_whole", _nothing)
        replace(FLIP, "init_weights", _nothing)

        stack.enter_context(mode)
        yield


class _Streams:
    """The streams of each thread."""

    def __init__(self, waits: list[str]) -> None:
        self._local = threading.local()
        self._default = _Stream(waits)

    def new(self, *args: Any, **settings: Any) -> _Stream:
        return self._default

    def current(self, *args: Any) -> _Stream:
        return getattr(self._local, "stream", self._default)

    @contextmanager
    def use(self, stream: _Stream | None) -> Generator[None]:
        before = self.current()
        self._local.stream = stream or before
        try:
            yield
        finally:
            self._local.stream = before


def _of_torch_cuda(streams: _Streams, waits: list[str]) -> dict[str, Any]:
    """Return the functions of torch.cuda that would ask a driver."""

    def synchronize(*args: Any, **settings: Any) -> None:
        waits.append(f"torch.cuda.synchronize{calling_place()}")

    return {
        "Stream": streams.new,
        "Event": _Event,
        "stream": streams.use,
        "current_stream": streams.current,
        "default_stream": streams.current,
        "synchronize": synchronize,
        "current_device": lambda: 0,
        "device_count": lambda: 8,
        "set_device": _nothing,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *args, **settings: True,
        "is_current_stream_capturing": lambda: False,
        "get_device_capability": lambda *args: CAPABILITY,
        "get_device_properties": lambda *args: PROPERTIES,
        "memory_allocated": lambda *args: 0,
        "max_memory_allocated": lambda *args: 0,
        "memory_reserved": lambda *args: 0,
        "reset_peak_memory_stats": _nothing,
        "empty_cache": _nothing,
    }


def _is_available() -> bool:
    """Say that there is a GPU to all but the fake mode, which would allocate real memory on it."""
    return not sys._getframe(1).f_code.co_filename.endswith("fake_tensor.py")


def _nothing(*args: Any, **settings: Any) -> None:
    """Do nothing."""


def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> Tensor:
    """Choose the kernel that CUDA takes without a mask: flash for 16 bits, memory-efficient for fp32."""
    if query.device.type != "cuda":
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, **settings)

    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)

    operators: Any = torch.ops.aten
    if query.dtype in (torch.bfloat16, torch.float16):
        return operators._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)[0]
    keeps = torch.is_grad_enabled()
    return operators._scaled_dot_product_efficient_attention(
        query, key, value, None, keeps, dropout_p, is_causal
    )[0]


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Replace nn.Module._apply, which swaps tensors in place: fake tensors cannot be swapped."""
    if recurse:
        for child in module.children():
            _apply(child, function)

    parameters = module._parameters  # pyrefly: ignore[protected-access]: torch has no public way
    for name, parameter in parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            new = function(parameter)
        if new is not parameter:
            parameters[name] = nn.Parameter(new, parameter.requires_grad)

    buffers = module._buffers  # pyrefly: ignore[protected-access]: torch has no public way
    for name, buffer in buffers.items():
        if buffer is not None:
            buffers[name] = function(buffer)
    return module


def _with_real_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes with real tensors: the ranks in a mesh are real."""

    def wrapped(*args: Any, **settings: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **settings)

    return wrapped
