"""The device memory that one process needs at once, by part, and what waits in host memory.

The parts are counted from the code: flipscale/sharding for weights, gradients and moments, `activations` for
what a forward keeps, losses/tiles.py for the loss. They are added as if each were at its largest at the same
time, so the sum is rather too large than too small (tests/planning/test_memory.py).

Not counted: the CUDA context and the buffers of NCCL and cuBLAS, fragmentation of the allocator, what
torch.compile saves, and evaluation. planning/fit.py leaves room for these.
"""

from __future__ import annotations

from dataclasses import dataclass

from flipscale.config import Job, Phase, Sharding
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
# Under zero1 and zero2 on GPUs (sharding/deepspeed.py): one bucket is filled while another is reduced.
_DEEPSPEED_SMALL_BUCKET = 100_000_000
# DeepSpeed's stage3_max_live_parameters: weights that it leaves gathered because they are used again soon.
_DEEPSPEED_LIVE = 1_000_000_000


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes that one process needs in one phase, in device memory except for `host`."""

    weights: int
    """The weights, or the process's share of them."""
    gradients: int
    """Gradients of the weights."""
    moments: int
    """Both moments of AdamW."""
    gathered: int
    """Whole weights of the blocks in use, bf16 copies, and the buffers of reductions."""
    activations: int
    """What the forward keeps for the backward, at its peak."""
    loss: int
    """Features of all processes, statistics and tiles."""
    batch: int
    """The process's share of the batch: pixels, tokens, visible patches."""
    host: int
    """Host memory: batches decoded ahead, what is offloaded, and the copy of the state for a checkpoint."""

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
class _Setting:
    """What all phases of a job share."""

    sharding: Sharding
    tile: int
    """Rows of the logit matrix that are computed at a time."""
    world_size: int
    device: Device

    @property
    def sizes(self) -> ElementSizes:
        return ElementSizes.of(self.sharding.precision, self.device)


@dataclass(frozen=True)
class _State:
    """Bytes that a strategy holds whatever the batch."""

    weights: int
    gradients: int
    moments: int
    gathered: int
    host: int


def estimate_memory(
    job: Job, spec: ModelSpec, world_size: int, device: Device = "cuda"
) -> tuple[PhaseMemory, ...]:
    """Estimate the memory of one process, for each phase of a job.

    Args:
        job: The job; its phases, sharding and loss are read.
        spec: The shape of the job's model, which a phase may change.
        world_size: Processes of the job.
        device: "cpu" counts what torch does on a CPU; see `activations`.
    """
    setting = _Setting(job.sharding, job.loss.tile, world_size, device)
    shapes = phase_specs(spec, job)

    # Two batches ahead (Stream._prefetch), the one in use, and its chunks while they are joined.
    largest = -(-max(phase.batch_size for phase in job.phases) // world_size)
    loader = 4 * largest * max(map(_pair, shapes))

    return tuple(
        _phase_memory(setting, phase, shape, loader) for phase, shape in zip(job.phases, shapes, strict=True)
    )


def _pair(spec: ModelSpec) -> int:
    """Return the bytes of a pair on its way to the device: pixels, tokens, position."""
    return 3 * spec.vision.image_size**2 + 8 * (spec.text.context_length + 1)


def _phase_memory(setting: _Setting, phase: Phase, spec: ModelSpec, loader: int) -> PhaseMemory:
    sharding = setting.sharding
    sizes = setting.sizes
    state = _state(setting, spec)
    local = -(-phase.batch_size // setting.world_size)
    pairs = min(local, sharding.micro_batch_in(phase) or local)

    gradients = state.gradients
    if sharding.strategy in ("ddp", "fsdp", "hsdp", "zero1") and pairs < local:
        # Only the last micro-batch is reduced; until then every process accumulates whole gradients.
        gradients += parameter_count(spec).total * sizes.exact

    return PhaseMemory(
        weights=state.weights,
        gradients=gradients,
        moments=state.moments,
        gathered=state.gathered + weight_copies(spec, sharding, sizes),
        activations=_activations(phase, spec, pairs, sharding, sizes),
        loss=_loss(setting, spec, local, pairs),
        batch=local * (_pair(spec) + _kept_ids(phase, spec)),
        host=state.host + loader,
    )


def _activations(phase: Phase, spec: ModelSpec, pairs: int, sharding: Sharding, sizes: ElementSizes) -> int:
    """Return the peak of the activations of both towers and the decoder."""
    visible = visible_count(spec.vision.patches, phase.mask_ratio)
    visible_tokens = visible_count(spec.text.context_length, phase.text_mask_ratio)
    image = image_activations(spec, pairs, visible, sharding, sizes)
    text = text_activations(spec, pairs, visible_tokens, sharding, sizes)
    decoder = decoder_activations(spec, pairs, visible, sharding, sizes)

    # The backward runs in the reverse order: the decoder's comes first and frees its activations, then the
    # text tower's, then the image tower's.
    peak = 0
    below = 0
    for part in (image, text, decoder):
        below += part.kept
        peak = max(peak, below + part.recomputed)

    return peak


def _kept_ids(phase: Phase, spec: ModelSpec) -> int:
    """Return the bytes of the ids of a pair's visible patches and slots."""
    patches = visible_count(spec.vision.patches, phase.mask_ratio) if phase.mask_ratio else 0
    slots = visible_count(spec.text.context_length, phase.text_mask_ratio) if phase.text_mask_ratio else 0
    return 8 * (patches + slots)


def _loss(setting: _Setting, spec: ModelSpec, local: int, pairs: int) -> int:
    """Count losses/contrastive.py: gathered texts, their own gradients, statistics, and the work of one tile.

    Args:
        setting: What all phases share.
        spec: The model.
        local: Pairs of one process per step.
        pairs: Pairs of one micro-batch.
    """
    everyone = local * setting.world_size
    rows = min(setting.tile, local)
    columns = min(8192 if setting.device == "cuda" else 2048, everyone)

    gathered = everyone if setting.world_size > 1 else 0
    features = gathered + 2 * local  # of all processes, and gradients by image and text
    if pairs < local:
        features += 4 * local  # those of GradCache: of each micro-batch, and joined

    # Scaled texts and their gradients; those of the block before are still summed over processes.
    blocks = (3 if setting.world_size > 1 else 2) * columns * spec.embed_dim
    tile = 3 * rows * columns + rows * spec.embed_dim
    statistics = 2 * (local + everyone)
    return setting.sizes.exact * (features * spec.embed_dim + blocks + tile + statistics)


def _state(setting: _Setting, spec: ModelSpec) -> _State:
    """Count what a strategy holds of the parameters, as flipscale/sharding sets it up."""
    sharding = setting.sharding
    sizes = setting.sizes
    whole = parameter_count(spec).total * sizes.exact
    share = -(-whole // (sharding.shard_size or setting.world_size))

    match sharding.strategy:
        case "ddp":
            # With several processes, gradients are copied into buckets once and stay there.
            return _State(whole, whole, 2 * whole, 0, 3 * whole)
        case "fsdp" | "hsdp":
            gathered = _fsdp_gathered(spec, sizes, reshard=sharding.reshard_after_forward)
            return _State(share, share, 2 * share, gathered, 3 * share)
        case "fairscale_oss":
            return _State(whole, whole, 2 * share, 0, whole + 2 * share)
        case "fairscale_fsdp":
            largest = max(block_matrices(tower) for tower in spec.towers) * sizes.exact
            outer = _outer(spec) * sizes.exact
            return _State(share, share, 2 * share, 4 * largest + 2 * outer, 3 * share)
        case "zero1" | "zero2" | "zero3":
            return _deepspeed(sharding.strategy, sharding.offload_optimizer, whole, share, setting.device)


def _deepspeed(strategy: str, offload: bool, whole: int, share: int, device: Device) -> _State:
    """Count ZeRO, which also keeps an fp32 master copy of the share although the weights are fp32."""
    bucket = 4 * _DEEPSPEED_BUCKET
    if device == "cuda" and strategy != "zero3":
        bucket = 4 * _DEEPSPEED_SMALL_BUCKET * (1 if offload else 2)
    moments = 0 if offload else 2 * share
    master = 0 if offload else share
    host = 3 * share + (2 * share if offload else 0)

    if strategy == "zero3":
        gathered = min(whole, 4 * _DEEPSPEED_LIVE)
        reduced = min(whole, bucket)  # the gradients of a bucket, again as the input of the reduction
        return _State(share + master, share, moments, bucket + gathered + reduced, host)

    # The share is averaged into one buffer and joined into another for the update.
    return _State(whole + master, 0 if offload else 2 * share, moments, bucket, host)


def _fsdp_gathered(spec: ModelSpec, sizes: ElementSizes, *, reshard: bool) -> int:
    """Count FSDP's whole weights: the outer unit always, one block in use and one fetched ahead.

    In the backward, the block in use also has whole gradients and a buffer in which they are reduced. The
    buffer that receives weights exists in addition to the weights.
    """
    largest = max(block_matrices(tower) for tower in spec.towers)
    held = 2 * largest
    if not reshard:
        held = sum(tower.layers * block_matrices(tower) for tower in spec.towers)

    in_blocks = (held + largest + largest) * sizes.product + largest * sizes.exact
    return in_blocks + 2 * _outer(spec) * sizes.exact


def _outer(spec: ModelSpec) -> int:
    """Return the number of parameters outside the blocks: embeddings, projections, last norms."""
    blocks = sum(tower.layers * block_matrices(tower) for tower in spec.towers)
    return parameter_count(spec).total - blocks
