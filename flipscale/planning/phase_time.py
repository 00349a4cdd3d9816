"""The time of a step in one phase of a job."""

from __future__ import annotations

from flipscale.config import Job, Phase
from flipscale.models.presets import ModelSpec
from flipscale.planning.activations import recomputing_blocks
from flipscale.planning.flops import CAPTION_TOKENS, forward_macs
from flipscale.planning.step_time import Pace, StepTime, Work, step_time
from flipscale.planning.throughput import Speed
from flipscale.planning.traffic import Layout, loss_traffic, weight_traffic, weights_of

SELECTIVE = 0.2
"""The share of a forward that `selective` computes again: norms, GELU and additions, without the products.

Of a roofline model of an H/14 step on an H200 (346 ms, of which this is 23).
"""


def phase_step(job: Job, phase: Phase, spec: ModelSpec, on: Speed, images_per_core: float) -> StepTime | None:
    """Return the time of a step, or None if the speed of the job is measured, not computed.

    Args:
        job: The job; its sharding and loss are read.
        phase: The phase.
        spec: The shape of the model in this phase.
        on: The GPUs.
        images_per_core: Images per second that one core of the loader reads.
    """
    if on.images_per_second is not None:
        return None

    pairs = -(-phase.batch_size // on.gpus)
    micro_batch = min(pairs, job.sharding.micro_batch_in(phase) or pairs)
    parts = -(-pairs // micro_batch)
    layout = Layout(on.gpus, on.gpus_per_node)

    sent = (
        *weight_traffic(job.sharding, weights_of(spec), layout, parts),
        *loss_traffic(pairs, spec.embed_dim, job.loss.kind, layout),
    )
    pace = Pace(on.gpu.peak_flops * on.mfu, on.gpu.fp32_flops, on.gpus, on.network)
    cores = on.cores_per_gpu
    return step_time(
        _work(job, phase, spec, pairs, parts),
        sent,
        pace,
        None if cores is None else pairs / (cores * images_per_core),
    )


def _work(job: Job, phase: Phase, spec: ModelSpec, pairs: int, parts: int) -> Work:
    """Count the FLOPs of one GPU in a step."""
    ratios = (phase.mask_ratio, phase.text_mask_ratio)
    macs = forward_macs(spec, *ratios, caption_tokens=CAPTION_TOKENS)
    forward = 2 * macs.total * pairs
    again = recomputed_share(spec, job.sharding.activation_checkpointing) * forward

    # With micro-batches the features come first, from a forward of their own (GradCache).
    features = 2 * (macs.image + macs.text) * pairs if parts > 1 else 0

    # Four products of the rows of one process with all columns (losses/contrastive.py).
    loss = 4 * 2 * pairs * phase.batch_size * spec.embed_dim
    return Work(forward + features, 2 * forward + again, loss)


def recomputed_share(spec: ModelSpec, mode: str) -> float:
    """Return the share of a forward that the backward computes again.

    Args:
        spec: The model.
        mode: As in `sharding.activation_checkpointing`.
    """
    layers = sum(tower.layers for tower in spec.towers)
    share = sum(recomputing_blocks(tower.layers, mode) for tower in spec.towers) / layers
    return share * SELECTIVE if mode == "selective" else share
