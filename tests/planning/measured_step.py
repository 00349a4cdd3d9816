"""The most that one process holds during a training step, sharded like a job says.

    torchrun --nproc-per-node=2 measured_step.py '[{"strategy": "fsdp"}, ...]'

prints, for each sharding, the first process's measured and estimated bytes as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from live_bytes import LiveBytes

from flipscale.config import Job
from flipscale.models.flip import build_model
from flipscale.models.masking import visible_patches
from flipscale.models.presets import preset
from flipscale.placement import placement
from flipscale.planning.memory import estimate
from flipscale.sharding.strategy import shard
from flipscale.training.gradients import Pairs, accumulate_gradients
from flipscale.world import World, join_world, leave_world

PAIRS = 16  # of each process
SPEC = preset("vit_tiny_p8", vocab_size=1000)


def job_of(world_size: int, sharding: dict[str, Any]) -> Job:
    batch = PAIRS * world_size
    phase = {"name": "p", "samples": 2 * batch, "mask_ratio": 0.5, "batch_size": batch, "base_lr": 1e-6}
    return Job.model_validate(
        {
            "name": "measured",
            "model": SPEC.name,
            "data": {"train": "none.tar", "tokenizer": {"vocab": "none.txt"}, "lanes": 1},
            "phases": [phase],
            "sharding": sharding,
        }
    )


def measure(world: World, sharding: dict[str, Any]) -> dict[str, int]:
    """Peak of two steps (some libraries grow until the second) and its estimate, in bytes."""
    job = job_of(world.size, sharding)
    patches, side = SPEC.vision.patches, SPEC.vision.image_size
    with LiveBytes() as live:
        model = shard(build_model(SPEC, device="meta"), job, world)
        live.peak = 0
        for _ in range(2):
            pairs = Pairs(
                torch.randint(256, (PAIRS, 3, side, side), dtype=torch.uint8),
                torch.randint(1000, (PAIRS, SPEC.text.context_length)),
                visible_patches(torch.arange(PAIRS), patches, 0.5, job.seed),
            )
            loss = accumulate_gradients(model, pairs, job)["loss"]
            model.gradient_norm(None)
            model.update(1e-6, torch.isfinite(loss))
    (estimated,) = estimate(job, SPEC, world.size, "cpu")
    return {"measured": live.peak, "estimated": estimated.total}


def main() -> None:
    torch.set_num_threads(1)
    world = join_world(placement())
    found = [measure(world, sharding) for sharding in json.loads(sys.argv[1])]
    if world.leads:
        print(json.dumps(found), flush=True)
    leave_world()


if __name__ == "__main__":
    main()
