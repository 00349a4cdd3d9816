"""The collectives of a step: what each sharding strategy and the loss send, and where in the step.

The counts follow flipscale/sharding and flipscale/losses. tests/planning/test_traffic.py compares them with
the collectives that torch starts. Recomputed activations gather nothing more: fsdp and fairscale_fsdp gather
a block before its backward, inside of which it is recomputed, and zero3 keeps what the recomputation gathers
for the backward that follows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from flipscale.config import Sharding
from flipscale.models.flip import build_model
from flipscale.models.presets import ModelSpec
from flipscale.planning.network import Kind

Part = Literal["forward", "backward", "loss", "update"]

_EXACT = 4
"""Bytes of weights, gradients and features that are sent exactly."""
_DDP_BUCKET = 25 * 2**20
"""DistributedDataParallel's bucket_cap_mb, in bytes."""
_DEEPSPEED_BUCKET = 500_000_000
"""DeepSpeed's reduce_bucket_size and allgather_bucket_size, in elements."""
_DEEPSPEED_PREFETCH = 50_000_000
"""DeepSpeed's stage3_prefetch_bucket_size: elements that zero3 gathers at a time."""
_DEEPSPEED_SMALL = 100_000
"""DeepSpeed's stage3_param_persistence_threshold: elements below which zero3 keeps a parameter gathered."""
_DEEPSPEED_REUSE = 1_000_000_000
"""DeepSpeed's stage3_max_reuse_distance: weights stay gathered if they are used again within so many."""
_FAIRSCALE_BUCKET = 25 * 2**20
"""bucket_cap_mb of fairscale's FullyShardedDataParallel, in bytes."""
_LOSS_COLUMNS = 8192
"""Columns of a block of logits on a GPU (losses/tiles.py)."""


@dataclass(frozen=True)
class Collective:
    """Equal collectives of one step."""

    kind: Kind
    size: int
    """Bytes of the whole tensor of each."""
    ranks: int
    ranks_per_node: int
    count: int
    part: Part
    """The part of the step in which they run."""
    window: float
    """The share of this part's computation during which they can run; 0 if the GPU waits for them."""


@dataclass(frozen=True)
class Weights:
    """The parameters of a model, as strategies divide them."""

    blocks: tuple[int, ...]
    """Elements of each transformer block."""
    outer: int
    """Elements outside of the blocks."""
    tensors: tuple[int, ...] = ()
    """Elements of every parameter by itself, for the strategies that do not send blocks."""

    @property
    def total(self) -> int:
        """Elements of all parameters."""
        return sum(self.blocks) + self.outer


@cache
def weights_of(spec: ModelSpec) -> Weights:
    """Count the parameters of a model by block, on the model itself, without allocating it."""
    model = build_model(spec, device="meta")
    blocks = tuple(
        sum(parameter.numel() for parameter in block.parameters())
        for transformer in model.transformers
        for block in transformer.resblocks
    )
    sizes = tuple(parameter.numel() for parameter in model.parameters())
    return Weights(blocks, sum(sizes) - sum(blocks), sizes)


@dataclass(frozen=True)
class Layout:
    """The processes of a job on its nodes."""

    world_size: int
    gpus_per_node: int

    @property
    def everyone(self) -> tuple[int, int]:
        """Processes of the whole job, and those of them on a node."""
        return self.world_size, min(self.gpus_per_node, self.world_size)

    def share(self, shard_size: int) -> tuple[int, int]:
        """Return the processes that share a copy (`shard_size` consecutive ones), and those on a node."""
        return shard_size, min(shard_size, self.gpus_per_node)

    def copies(self, shard_size: int) -> tuple[int, int]:
        """Return the processes with the same share of different copies, and those on a node."""
        copies = self.world_size // shard_size
        return copies, max(1, min(copies, self.gpus_per_node // shard_size))


def weight_traffic(
    sharding: Sharding, weights: Weights, layout: Layout, parts: int = 1
) -> tuple[Collective, ...]:
    """Return the collectives of weights and gradients in a step.

    Args:
        sharding: The `sharding` block of the job.
        weights: The parameters of the model.
        layout: The processes.
        parts: Micro-batches of a step; with more than one the features are computed first (GradCache).
    """
    if layout.world_size == 1:
        return ()

    ranks = layout.everyone
    match sharding.strategy:
        case "ddp":
            found = _reductions("all_reduce", weights.total, _DDP_BUCKET // _EXACT, ranks, parts, each=False)
        case "fsdp" | "hsdp":
            found = _fsdp(sharding, weights, layout, parts)
        case "fairscale_oss":
            found = _fairscale_oss(weights, ranks, parts)
        case "fairscale_fsdp":
            found = _fairscale_fsdp(sharding, weights, ranks, parts)
        case "zero1" | "zero2":
            found = _zero(weights, ranks, 1 if sharding.strategy == "zero1" else parts)
        case "zero3":
            found = _zero3(weights, ranks, parts)
    return tuple(one for one in found if one.ranks > 1)


def loss_traffic(
    pairs: int, embed_dim: int, kind: Literal["contrastive", "sigmoid"], layout: Layout
) -> tuple[Collective, ...]:
    """Return the collectives of the loss, for which the GPU waits.

    Texts of all processes are gathered, and the gradients of the texts are reduce-scattered block by block.
    InfoNCE also combines the softmax statistics of its columns.

    Args:
        pairs: Pairs of one process.
        embed_dim: Width of a feature.
        kind: The kind of the loss.
        layout: The processes.
    """
    if layout.world_size == 1:
        return ()

    ranks = layout.everyone
    everyone = pairs * layout.world_size
    width = max(1, _LOSS_COLUMNS // layout.world_size)
    blocks = math.ceil(pairs / width)
    features = everyone * embed_dim * _EXACT

    gather = Collective("all_gather", features, *ranks, 1, "loss", 0)
    scatter = Collective("reduce_scatter", features // blocks, *ranks, blocks, "loss", 0)
    scalar = Collective("all_reduce", _EXACT, *ranks, 1, "loss", 0)
    if kind == "sigmoid":
        return (gather, scatter, scalar)
    return (gather, scatter, Collective("all_reduce", everyone * _EXACT, *ranks, 2, "loss", 0), scalar)


def _reductions(
    kind: Kind, elements: int, bucket: int, ranks: tuple[int, int], parts: int, *, each: bool
) -> Iterator[Collective]:
    """Yield the reductions of gradients while the backward runs; the last bucket comes after its end.

    Args:
        kind: What reduces a bucket.
        elements: Elements of all gradients.
        bucket: Elements of a bucket.
        ranks: The processes.
        parts: Micro-batches of a step.
        each: Whether every micro-batch is reduced, or only the last.
    """
    count = max(1, math.ceil(elements / bucket))
    size = elements * _EXACT // count
    times = parts if each else 1
    yield Collective(kind, size, *ranks, times * (count - 1), "backward", times / parts)
    yield Collective(kind, size, *ranks, times, "backward", 0)


def _fsdp(sharding: Sharding, weights: Weights, layout: Layout, parts: int) -> Iterator[Collective]:
    """Yield the traffic of sharding/fsdp.py.

    Blocks are gathered in the precision of products and reduced in fp32, the outer unit is gathered and
    reduced in fp32. Each is fetched while the block before it runs, except the outer unit, which comes first.
    Gradients are reduced in the last micro-batch only.
    """
    element = 2 if sharding.precision == "bf16" else _EXACT
    shard_size = sharding.shard_size or layout.world_size
    share = layout.share(shard_size)
    passes = parts if parts == 1 else 2 * parts

    for block, count in _alike(weights.blocks):
        if sharding.reshard_after_forward:
            yield Collective("all_gather", block * element, *share, count * passes, "forward", 1)
            yield Collective("all_gather", block * element, *share, count * parts, "backward", 1)
        else:
            yield Collective("all_gather", block * element, *share, count * parts, "forward", 1)
        yield Collective("reduce_scatter", block * _EXACT, *share, count, "backward", 1 / parts)
        if sharding.strategy == "hsdp":
            copy = block * _EXACT // shard_size
            yield Collective("all_reduce", copy, *layout.copies(shard_size), count, "backward", 1 / parts)

    outer = weights.outer * _EXACT
    yield Collective("all_gather", outer, *share, parts, "forward", 0)
    yield Collective("reduce_scatter", outer, *share, 1, "backward", 0)
    if sharding.strategy == "hsdp":
        yield Collective("all_reduce", outer // shard_size, *layout.copies(shard_size), 1, "backward", 0)
    yield Collective("all_reduce", 8, *share, 1, "update", 0)  # the norm of the gradient


def _fairscale_oss(weights: Weights, ranks: tuple[int, int], parts: int) -> Iterator[Collective]:
    """Yield the traffic of sharding/fairscale_oss.py: a bucket per owner goes to it, and comes back."""
    owners = min(ranks[0], len(weights.tensors))
    size = weights.total * _EXACT // owners
    yield Collective("reduce", size, *ranks, owners - 1, "backward", 1 / parts)
    yield Collective("reduce", size, *ranks, 1, "backward", 0)
    yield Collective("all_reduce", _EXACT, *ranks, 1, "update", 0)
    yield Collective("broadcast", size, *ranks, owners, "update", 0)


def _fairscale_fsdp(
    sharding: Sharding, weights: Weights, ranks: tuple[int, int], parts: int
) -> Iterator[Collective]:
    """Yield the traffic of sharding/fairscale_fsdp.py: every parameter is gathered by itself, in fp32."""
    count = len(weights.tensors)
    size = weights.total * _EXACT // count
    passes = parts if parts == 1 else 2 * parts
    yield Collective("all_gather", size, *ranks, count * passes, "forward", 1)
    if sharding.reshard_after_forward:
        yield Collective("all_gather", size, *ranks, count * parts, "backward", 1)
    bucket = _FAIRSCALE_BUCKET // _EXACT
    yield from _reductions("reduce_scatter", weights.total, bucket, ranks, parts, each=True)
    yield Collective("all_reduce", 8, *ranks, 1, "update", 0)


def _zero(weights: Weights, ranks: tuple[int, int], reductions: int) -> Iterator[Collective]:
    """Yield the traffic of zero1 and zero2: whole gradients are summed, and new weights are gathered.

    The GPU waits for them: DeepSpeed's overlap_comm is off for these stages unless it is set.
    """
    buckets = math.ceil(weights.total / _DEEPSPEED_BUCKET)
    size = weights.total * _EXACT // buckets
    yield Collective("all_reduce", size, *ranks, buckets * reductions, "backward", 0)
    yield Collective("all_reduce", 8, *ranks, 1, "update", 0)

    # The optimizer has two groups of parameters, with and without decay, which are gathered one by one.
    yield Collective("all_gather", size // 2, *ranks, 2 * buckets, "update", 0)


def _zero3(weights: Weights, ranks: tuple[int, int], parts: int) -> Iterator[Collective]:
    """Yield the traffic of zero3, which gathers weights in fp32 and reduces in every micro-batch.

    The backward gathers only what the forward dropped, which is what is not used again soon: weights more
    than half the reuse distance before the end of the forward. With micro-batches, every forward drops all.
    Small parameters are gathered one by one after the update, and then kept.
    """
    small = [size for size in weights.tensors if size < _DEEPSPEED_SMALL]
    large = weights.total - sum(small)
    gathers = math.ceil(large / _DEEPSPEED_PREFETCH)
    size = large * _EXACT // max(1, gathers)
    dropped = max(0.0, 1 - _DEEPSPEED_REUSE / 2 / weights.total) if parts == 1 else 1.0
    passes = parts if parts == 1 else 2 * parts

    yield Collective("all_gather", size, *ranks, gathers * passes, "forward", 1)
    yield Collective("all_gather", size, *ranks, math.ceil(gathers * dropped) * parts, "backward", 1)
    if small:
        one = sum(small) * _EXACT // len(small)
        yield Collective("all_gather", one, *ranks, len(small), "update", 0)
    yield from _reductions("reduce_scatter", weights.total, _DEEPSPEED_BUCKET, ranks, parts, each=True)
    yield Collective("all_reduce", 8, *ranks, 1, "update", 0)


def _alike(blocks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield each size of a block and the number of blocks of this size."""
    for size in dict.fromkeys(blocks):
        yield size, blocks.count(size)
