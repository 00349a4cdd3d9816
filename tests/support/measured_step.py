"""Measure the most that one process holds during a training step with a given sharding.

    torchrun --nproc-per-node=2 measured_step.py '[{"strategy": "fsdp"}, ...]'

The script prints, for each sharding, the first process's measured and estimated bytes as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from support.live_bytes import LiveBytes

from flipscale.config import Job
from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import World, join_world, leave_world
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.masking import visible_patches, visible_tokens
from flipscale.models.presets import preset
from flipscale.planning.memory import estimate_memory
from flipscale.sharding.shard import shard
from flipscale.sharding.strategy import ShardedModel
from flipscale.training.gradients import accumulate_gradients

PAIRS = 16  # of each process
SPEC = preset("vit_tiny_p8", vocab_size=1000)


DECODER = {"width": 128, "layers": 2, "heads": 4}
WITH_DECODER = preset("vit_tiny_p8", vocab_size=1000, decoder=(128, 2, 4))


def job_of(world_size: int, sharding: dict[str, Any], *, ablations: bool = False) -> Job:
    batch = PAIRS * world_size
    phase = {"name": "p", "samples": 2 * batch, "mask_ratio": 0.5, "batch_size": batch, "base_lr": 1e-6}
    if ablations:
        phase["text_mask_ratio"] = 0.5
    return Job.model_validate(
        {
            "name": "measured",
            "model": SPEC.name,
            "data": {"train": "none.tar", "tokenizer": {"vocab": "none.txt"}, "lanes": 1},
            "phases": [phase],
            "sharding": sharding,
            "loss": {"reconstruction": DECODER} if ablations else {},
        }
    )


def measure(world: World, sharding: dict[str, Any], *, ablations: bool = False) -> dict[str, int]:
    """Return the peak of two steps (some libraries grow until the second) and its estimate, in bytes.

    Args:
        world: The processes that train.
        sharding: The `sharding` block of the job.
        ablations: Mask half of each caption, and reconstruct hidden patches.
    """
    job = job_of(world.size, sharding, ablations=ablations)
    spec = WITH_DECODER if ablations else SPEC

    with LiveBytes() as live:
        model = shard(build_model(spec, device="meta"), job.sharding, job.optimizer, job.seed, world)
        live.peak = 0
        for _ in range(2):
            train_once(model, job)

    (estimated,) = estimate_memory(job, spec, world.size, "cpu")
    return {"measured": live.peak, "estimated": estimated.total}


def train_once(model: ShardedModel, job: Job) -> None:
    """Run one step of a job of `job_of` with pairs of noise."""
    patches = SPEC.vision.patches
    side = SPEC.vision.image_size
    positions = torch.arange(PAIRS)
    texts = torch.randint(1000, (PAIRS, SPEC.text.context_length))
    ratio = job.phases[0].text_mask_ratio
    pairs = Inputs(
        torch.randint(256, (PAIRS, 3, side, side), dtype=torch.uint8),
        texts,
        visible_patches(positions, patches, 0.5, job.seed),
        visible_tokens(texts, positions, ratio, job.seed, "random", "first", 0),
    )
    loss = accumulate_gradients(model, pairs, job.loss, job.sharding.micro_batch)["loss"]
    model.gradient_norm(None)
    model.update(1e-6, torch.isfinite(loss))


def main() -> None:
    torch.set_num_threads(1)
    world = join_world(read_placement())
    results = [measure(world, sharding) for sharding in json.loads(sys.argv[1])]
    if world.leads:
        print(json.dumps(results), flush=True)
    leave_world()


if __name__ == "__main__":
    main()
