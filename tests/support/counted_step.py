"""Count the collectives that torch starts in a step of one of many processes, whose others do not exist.

    python counted_step.py '[{"strategy": "fsdp"}, ...]'

torch's fake process group makes this the first of `WORLD` processes: collectives return at once, with results
that mean nothing. The script prints, for each sharding, the number and the bytes of the whole tensors by
kind, as JSON. It cannot run ddp, whose reducer waits for results.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flipscale.config import Loss, Optimizer, Sharding
from flipscale.distributed.world import World
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.presets import ModelSpec, preset
from flipscale.sharding.shard import shard
from flipscale.sharding.strategy import ShardedModel
from flipscale.training.gradients import accumulate_gradients

WORLD = 8
PAIRS = 4  # of this process
SPEC = preset("vit_tiny_p8")

KINDS = {
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
}


class Collectives(TorchDispatchMode):
    """The collectives that are started inside the context: number and bytes by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and count it if it communicates."""
        result = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            kind = KINDS[func.overloadpacket.__name__]
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            count, size = self.counts.get(kind, (0, 0))
            whole = max(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.counts[kind] = [count + 1, size + whole]
        return result


def inputs(spec: ModelSpec) -> Inputs:
    side = spec.vision.image_size
    return Inputs(
        torch.zeros(PAIRS, 3, side, side, dtype=torch.uint8),
        torch.zeros(PAIRS, spec.text.context_length, dtype=torch.long),
        torch.zeros(PAIRS, spec.vision.patches // 2, dtype=torch.long),
    )


def step(model: ShardedModel, sharding: Sharding) -> None:
    accumulate_gradients(model, inputs(SPEC), Loss(), sharding.micro_batch)
    model.gradient_norm(None)
    model.update(1e-3, torch.tensor(True))


def count(sharding: Sharding) -> dict[str, list[int]]:
    """Return the collectives of the third step: DeepSpeed first records which weights are used when."""
    world = World(0, WORLD, 0, WORLD, torch.device("cpu"))
    model = shard(build_model(SPEC, device="meta"), sharding, Optimizer(), 0, world)
    for _ in range(2):
        step(model, sharding)
    with Collectives() as seen:
        step(model, sharding)
    model.release()
    return seen.counts


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
    print(json.dumps([count(Sharding.model_validate(one)) for one in json.loads(sys.argv[1])]), flush=True)


if __name__ == "__main__":
    main()
