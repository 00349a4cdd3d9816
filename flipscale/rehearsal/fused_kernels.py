"""The kernels that torch.compile would make of a block on a GPU, as its own scheduler fuses them.

The compiler runs on fake tensors until its kernels are chosen; no code is generated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import device_interface
from torch._functorch import config as functorch_config
from torch._inductor import compile_fx, config, scheduler
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter

from flipscale.rehearsal.block_calls import BlockCall
from flipscale.rehearsal.gpu_properties import CAPABILITY, PROPERTIES

# The compiler's inner functions are untyped, or typed for its own callers only.
_compile_fx: Any = compile_fx
_config: Any = config
_functorch_config: Any = functorch_config

_LIBRARY_KERNELS = ("mm", "addmm", "bmm", "baddbmm", "attention")
"""Products and attention: kernels of libraries, which compiling leaves as they are."""


class _Chosen(BaseException):
    """Ends a compilation when the kernels are chosen. Not an Exception: the compiler catches those."""


def bytes_of_fused_kernels(call: BlockCall, device: torch.device) -> list[int]:
    """Return the bytes that each compiled kernel of a block reads and writes, in forward and backward.

    Products and attention are left out. Call it outside of `fake_device`, which the compiler cannot trace.

    Args:
        call: How the block is called.
        device: "cuda", with the fake accelerator loaded.
    """
    kernels: list[int] = []

    def choose(graph: Any) -> None:
        graph.init_wrapper_code()
        graph._update_scheduler()
        kernels.extend(_bytes_of_kernels(graph.scheduler.nodes))
        raise _Chosen

    def compile_graph(graph: GraphModule, inputs: Sequence[Any], **settings: Any) -> Callable[..., Any]:
        as_traced = copy.deepcopy(graph)  # the compiler changes it in place
        with suppress(_Chosen):
            _compile_fx.compile_fx_inner(graph, inputs, **settings)
        return _run_boxed(as_traced)

    def compile_block(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        return _compile_fx.compile_fx(graph, inputs, inner_compile=compile_graph)

    with _compiler_of_a_gpu(device), mock.patch.object(GraphLowering, "codegen", choose):
        lone = call.make(device)
        lone.block.compile(backend=compile_block, dynamic=False)
        lone.run()
    return kernels


def _bytes_of_kernels(nodes: Sequence[Any]) -> list[int]:
    kernels: list[int] = []
    for node in nodes:
        if isinstance(node, scheduler.NopKernelSchedulerNode):
            continue
        if node.is_extern() and _is_of_a_library(node.node):
            continue
        moved = node.get_read_write_buffers_sizes()
        if moved:  # an output of a kernel that has several moves nothing by itself
            kernels.append(moved)
    return kernels


def _is_of_a_library(kernel: Any) -> bool:
    name = str(getattr(kernel, "op_overload", None) or getattr(kernel, "python_kernel_name", ""))
    return any(part in name for part in _LIBRARY_KERNELS)


def _run_boxed(graph: GraphModule) -> Callable[..., Any]:
    def run(arguments: list[Any]) -> Any:
        values = list(arguments)
        arguments.clear()
        return Interpreter(graph).run(*values)

    run._boxed_call = True  # pyrefly: ignore[missing-attribute]: the compiler's own mark
    return run


@contextmanager
def _compiler_of_a_gpu(device: torch.device) -> Generator[None]:
    """Let the compiler believe that there is a GPU with Triton, and make all new tensors fake ones."""
    interface: Any = device_interface.CudaInterface

    def gpu(*arguments: Any) -> SimpleNamespace:
        return PROPERTIES

    def capability(*arguments: Any) -> int:
        return 10 * CAPABILITY[0] + CAPABILITY[1]

    answers: tuple[tuple[Any, str, Any], ...] = (
        (scheduler, "has_triton", lambda *arguments: True),
        (torch.cuda, "is_available", lambda: False),  # else fake tensors allocate memory on the GPU
        (torch.cuda, "get_device_properties", gpu),
        (torch.cuda, "get_device_capability", lambda *arguments: CAPABILITY),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "is_bf16_supported", lambda *arguments, **settings: True),
        (torch.cuda, "get_rng_state", lambda *arguments: torch.empty(16, dtype=torch.uint8)),
        (torch.cuda, "set_rng_state", lambda *arguments: None),
        (torch.cuda, "default_generators", (torch.Generator(),)),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (interface, "get_device_properties", staticmethod(gpu)),
        (interface, "get_compute_capability", staticmethod(capability)),
        (interface, "is_bf16_supported", staticmethod(lambda *arguments, **settings: True)),
        (F, "scaled_dot_product_attention", _flash_attention),
    )
    torch._dynamo.reset()
    with ExitStack() as stack:
        for owner, name, answer in answers:
            stack.enter_context(mock.patch.object(owner, name, answer))
        # Folding would make tensors on the GPU, such as the zeros behind the ends of captions.
        stack.enter_context(_config.patch(fx_graph_cache=False, joint_graph_constant_folding=False))
        # No operator of a block draws random numbers, though attention could.
        stack.enter_context(_functorch_config.patch(graphsafe_rng_functionalization=False))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    operators: Any = torch.ops.aten
    return operators._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal)[0]
