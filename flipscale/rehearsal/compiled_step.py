"""The cost of a step whose blocks torch compiles, from that of the uncompiled step and of single blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from flipscale.rehearsal.block_calls import BlockCall
from flipscale.rehearsal.device_time import DeviceTime
from flipscale.rehearsal.live_memory import LiveMemory
from flipscale.rehearsal.operators import Cost
from flipscale.rehearsal.recorder import Recorder

if TYPE_CHECKING:
    from flipscale.rehearsal.one_phase import StepRecord

_KEPT = ("products", "attention")  # compiling leaves the kernels of libraries as they are


class NotFused(Exception):
    """The compiler does not run here; the message says why."""


@dataclass(frozen=True)
class BlockCost:
    """The kernels of a block that compiling replaces."""

    launches: int
    bytes: int
    """Bytes of device memory that they read or write."""
    seconds: Mapping[str, float]
    """Modelled seconds by kind of work."""


def cost_uncompiled(call: BlockCall, device: torch.device, time: DeviceTime) -> BlockCost:
    """Run a block by itself, forward and backward. Call it inside of `fake_device`.

    Args:
        call: How the block is called.
        device: The device of the rehearsal.
        time: The model of the device's time.
    """
    lone = call.make(device)
    with Recorder(device.type, time, LiveMemory()) as recorder:
        lone.run()

    replaced = [group for group in recorder.seconds if group not in _KEPT]
    return BlockCost(
        sum(recorder.launches[group] for group in replaced),
        sum(recorder.bytes[group] for group in replaced),
        {group: recorder.seconds[group] for group in replaced},
    )


def fuse_kernels(
    record: StepRecord,
    calls: Mapping[BlockCall, int],
    uncompiled: Mapping[BlockCall, BlockCost],
    device: torch.device,
    time: DeviceTime,
) -> StepRecord:
    """Return the record of a step in which torch's compiler has fused the kernels of all blocks.

    Memory and collectives stay those of the uncompiled step. Call it outside of `fake_device`.

    Args:
        record: The uncompiled step.
        calls: How often it calls each kind of block.
        uncompiled: The costs of these blocks.
        device: "cuda", with the fake accelerator loaded.
        time: The model of the device's time.

    Raises:
        NotFused: If the compiler does not run on fake tensors.
    """
    launches, moved = record.launches, record.bytes
    seconds: defaultdict[str, float] = defaultdict(float, record.seconds)

    for call, count in calls.items():
        compiled = _cost_compiled(call, device, time)
        for cost, times in ((uncompiled[call], -count), (compiled, count)):
            launches += times * cost.launches
            moved += times * cost.bytes
            for group, took in cost.seconds.items():
                seconds[group] += times * took

    # The difference of two sums of the same floats can be a little above or below zero.
    left = {group: took for group, took in seconds.items() if took > 1e-9}
    return replace(record, launches=launches, bytes=moved, seconds=left)


def _cost_compiled(call: BlockCall, device: torch.device, time: DeviceTime) -> BlockCost:
    # Not earlier: torch's compiler lists torch's functions, of which `fake_device` replaces some.
    from flipscale.rehearsal.fused_kernels import bytes_of_fused_kernels

    try:
        moved = bytes_of_fused_kernels(call, device)
    except Exception as error:  # the compiler's inner functions differ between versions of torch
        kind = type(getattr(error, "inner_exception", error)).__name__
        raise NotFused(
            f"the compiler of torch {torch.__version__} does not run on fake tensors: {kind}"
        ) from error
    if not moved:
        raise NotFused("torch compiled no block; unset TORCH_COMPILE_DISABLE and TORCHDYNAMO_DISABLE")
    seconds = sum(time.seconds(Cost("fused", 0, each, exact=False), ()) for each in moved)
    return BlockCost(len(moved), sum(moved), {"fused": seconds})
