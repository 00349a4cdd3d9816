"""Time the training step of a job on every process, from the last start to the last end.

    torchrun --nproc-per-node=4 timed_step.py 3 '[{"strategy": "fsdp"}, ...]'

The script prints, for each sharding, the seconds of so many steps as JSON, without those of a first one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from support.measured_step import SPEC, job_of, train_once
from support.timed_collectives import seconds_together

from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import World, join_world, leave_world
from flipscale.models.flip import build_model
from flipscale.sharding.shard import shard


def step_seconds(world: World, sharding: dict[str, Any], steps: int) -> list[float]:
    """Return the seconds of each of so many steps with a `sharding` block."""
    job = job_of(world.size, sharding)
    model = shard(build_model(SPEC, device="meta"), job.sharding, job.optimizer, job.seed, world)
    train_once(model, job)

    taken = [seconds_together(world, lambda: train_once(model, job)) for _ in range(steps)]
    model.release()
    return taken


def main() -> None:
    steps, shardings = int(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    world = join_world(read_placement())
    results = [step_seconds(world, sharding, steps) for sharding in shardings]
    if world.leads:
        print(json.dumps(results), flush=True)
    leave_world()


if __name__ == "__main__":
    main()
