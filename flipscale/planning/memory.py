"""What one process needs in device memory at once, by part, and what waits in host memory.

Counted from the code: flipscale/sharding for weights, gradients and moments, `activations` for what a forward
keeps, losses/tiles.py for the loss. The parts are added up as if each were at its largest at the same time,
so that a sum is rather too large than too small (tests/planning/test_memory.py).

Not counted: the CUDA context and the buffers of NCCL and cuBLAS, fragmentation of the allocator, what
torch.compile saves, and evaluation. planning/fit.py leaves room for these.
"""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.config import Job, Phase
from flipscale.models.masking import visible_count
from flipscale.models.of_job import phase_specs
from flipscale.models.presets import ModelSpec
from flipscale.planning.activations import (
    Device,
    ElementSizes,
    block_matrices,
    decoder_activations,
    image_activations,
    text_activations,
    weight_copies,
)
from flipscale.planning.flops import parameter_count

# DeepSpeed's reduce_bucket_size: a buffer of this many elements, whatever the size of the model.
_DEEPSPEED_BUCKET = 500_000_000
# DeepSpeed's stage3_max_live_parameters: weights that it leaves gathered since they are used again soon.
_DEEPSPEED_LIVE = 1_000_000_000


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes of one process in one phase, in device memory; `host` is beside it in host memory."""

    weights: int
    gradients: int
    moments: int
    gathered: int
    """Whole weights of the blocks in use, bf16 copies, and the buffers of reductions."""
    activations: int
    loss: int
    """Features of all processes, statistics and tiles."""
    batch: int
    """The process's share of the batch: pixels, tokens, visible patches."""
    host: int
    """Batches decoded ahead, what is offloaded, and the copy of the state that a checkpoint is made from."""

    @property
    def total(self) -> int:
        """Bytes in device memory."""
        return (
            self.weights
            + self.gradients
            + self.moments
            + self.gathered
            + self.activations
            + self.loss
            + self.batch
        )


@dataclass(frozen=True)
class _State:
    """Bytes of what a strategy holds whatever the batch."""

    weights: int
    gradients: int
    moments: int
    gathered: int
    host: int


def estimate_memory(
    job: Job, spec: ModelSpec, world_size: int, device: Device = "cuda"
) -> tuple[PhaseMemory, ...]:
    """Memory of one of `world_size` processes, for each phase of `job`.

    Args:
        spec: the shape of the job's model, where a phase says nothing else.
        device: "cpu" counts what torch does there; see `activations`.
    """
    shapes = phase_specs(spec, job)
    largest = -(-max(phase.batch_size for phase in job.phases) // world_size)
    # Two batches ahead (Stream._prefetch), the one in use, and its chunks while they are joined.
    loader = 4 * largest * max(map(_pair, shapes))
    return tuple(
        _phase_memory(job, shape, phase, world_size, device, loader)
        for shape, phase in zip(shapes, job.phases, strict=True)
    )


def _pair(spec: ModelSpec) -> int:
    """Bytes of a pair on its way to the device: pixels, tokens, position."""
    return 3 * spec.vision.image_size**2 + 8 * (spec.text.context_length + 1)


def _phase_memory(
    job: Job, spec: ModelSpec, phase: Phase, world_size: int, device: Device, loader: int
) -> PhaseMemory:
    sharding = job.sharding
    sizes = ElementSizes.of(sharding.precision, device)
    state = _state(job, spec, world_size, sizes)
    local = -(-phase.batch_size // world_size)
    pairs = min(local, sharding.micro_batch or local)
    visible = visible_count(spec.vision.patches, phase.mask_ratio)
    image = image_activations(spec, pairs, visible, sharding, sizes)
    visible_tokens = visible_count(spec.text.context_length, phase.text_mask_ratio)
    text = text_activations(spec, pairs, visible_tokens, sharding, sizes)
    decoder = decoder_activations(spec, pairs, visible, sharding, sizes)
    # The backward of what came last, the decoder, comes first and frees what it kept; then the text tower's.
    activations, below = 0, 0
    for part in (image, text, decoder):
        below += part.kept
        activations = max(activations, below + part.recomputed)

    kept_ids = (visible * 8 if phase.mask_ratio else 0) + (visible_tokens * 8 if phase.text_mask_ratio else 0)
    gradients = state.gradients
    if sharding.strategy in ("ddp", "fsdp", "hsdp", "zero1") and pairs < local:
        # Reduced in the last micro-batch alone; until then every process adds up whole ones.
        gradients += parameter_count(spec).total * sizes.exact
    return PhaseMemory(
        weights=state.weights,
        gradients=gradients,
        moments=state.moments,
        gathered=state.gathered + weight_copies(spec, sharding, sizes),
        activations=activations,
        loss=_loss(job, spec, local, pairs, world_size, device),
        batch=local * (_pair(spec) + kept_ids),
        host=state.host + loader,
    )


def _loss(job: Job, spec: ModelSpec, local: int, pairs: int, world_size: int, device: Device) -> int:
    """losses/contrastive.py: gathered texts, their own gradients, statistics, and one tile's work."""
    exact = ElementSizes.of(job.sharding.precision, device).exact
    everyone = local * world_size
    rows, columns = min(job.loss.tile, local), min(8192 if device == "cuda" else 2048, everyone)
    gathered = everyone if world_size > 1 else 0
    features = gathered + 2 * local  # of all processes, and gradients by image and text
    if pairs < local:
        features += 4 * local  # GradCache's: of each micro-batch, and joined
    blocks = 2 * columns * spec.embed_dim  # scaled texts and their gradients
    tile = 3 * rows * columns + rows * spec.embed_dim
    statistics = 2 * (local + everyone)
    return exact * (features * spec.embed_dim + blocks + tile + statistics)


def _state(job: Job, spec: ModelSpec, world_size: int, sizes: ElementSizes) -> _State:
    """What each strategy holds, of P parameters shared by W processes; read off flipscale/sharding."""
    sharding = job.sharding
    whole = parameter_count(spec).total * sizes.exact
    share = -(-whole // (sharding.shard_size or world_size))
    match sharding.strategy:
        case "ddp":
            # A process of several copies its gradients into buckets once, and then keeps them there.
            return _State(whole, whole, 2 * whole, 0, 3 * whole)
        case "fsdp" | "hsdp":
            return _State(share, share, 2 * share, _fsdp_gathered(job, spec, sizes), 3 * share)
        case "fairscale_oss":
            return _State(whole, whole, 2 * share, 0, whole + 2 * share)
        case "fairscale_fsdp":
            largest = max(block_matrices(tower) for tower in spec.towers) * sizes.exact
            outer = _outer(spec) * sizes.exact
            return _State(share, share, 2 * share, 4 * largest + 2 * outer, 3 * share)
        case _:
            return _deepspeed(sharding.strategy, sharding.offload_optimizer, whole, share)


def _deepspeed(strategy: str, offload: bool, whole: int, share: int) -> _State:
    """ZeRO also keeps an fp32 master copy of the process's share, though the weights are fp32 already."""
    bucket = 4 * _DEEPSPEED_BUCKET
    moments, master = (0, 0) if offload else (2 * share, share)
    host = 3 * share + (2 * share if offload else 0)
    if strategy == "zero3":
        gathered = min(whole, 4 * _DEEPSPEED_LIVE)
        reduced = min(whole, bucket)  # a bucket's gradients, once more as the reduction's input
        return _State(share + master, share, moments, bucket + gathered + reduced, host)
    # The share is averaged into one buffer and joined into another for the update.
    return _State(whole + master, 0 if offload else 2 * share, moments, bucket, host)


def _fsdp_gathered(job: Job, spec: ModelSpec, sizes: ElementSizes) -> int:
    """Whole weights: the outer unit throughout, and of the blocks one in use and one fetched ahead.

    In the backward the block in use has whole gradients, too, and a buffer in which they are reduced; the
    buffer that weights arrive in is there beside the weights.
    """
    outer = _outer(spec)
    largest = max(block_matrices(tower) for tower in spec.towers)
    held = 2 * largest
    if not job.sharding.reshard_after_forward:
        held = sum(tower.layers * block_matrices(tower) for tower in spec.towers)
    in_blocks = (held + largest + largest) * sizes.product + largest * sizes.exact
    return in_blocks + 2 * outer * sizes.exact


def _outer(spec: ModelSpec) -> int:
    """Parameters outside of the blocks: embeddings, projections, last norms."""
    blocks = sum(tower.layers * block_matrices(tower) for tower in spec.towers)
    return parameter_count(spec).total - blocks
