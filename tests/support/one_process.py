"""A sharded model in this process only, stepped by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flipscale.config import Job
from flipscale.distributed.world import World
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.presets import ModelSpec, preset
from flipscale.sharding.shard import shard
from flipscale.sharding.strategy import ShardedModel
from flipscale.training.gradients import accumulate_gradients

SPEC = preset("vit_micro_p8", vocab_size=40, context_length=16)
CLIP_SPEC = preset("clip_micro_p8", vocab_size=40, context_length=16)
LENGTHS = ((3, 9, 16, 4, 7, 12, 5, 8), (2, 3, 2, 4, 3, 2, 5, 3), (16,) * 8)


def make_pairs(step: int, count: int = 8) -> Inputs:
    generator = torch.Generator().manual_seed(step)
    size, patches = SPEC.vision.image_size, SPEC.vision.patches
    keep = [torch.randperm(patches, generator=generator)[: patches // 2] for _ in range(count)]
    return Inputs(
        torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator),
        torch.randint(40, (count, 16), generator=generator),
        torch.stack(keep),
    )


def make_captioned_pairs(step: int, *, packed: bool) -> Inputs:
    """Return pairs for CLIP_SPEC whose captions end after as many tokens as `LENGTHS` says."""
    pairs = make_pairs(step)
    lengths = LENGTHS[step % len(LENGTHS)]
    assert pairs.texts is not None
    end = CLIP_SPEC.text.vocab_size - 1
    texts = pairs.texts.clamp(max=end - 1)
    for row, length in zip(texts, lengths, strict=True):
        row[length - 1] = end
        row[length:] = 0
    return pairs._replace(texts=texts, lengths=lengths if packed else None)


_of_deepspeed: list[ShardedModel] = []


def release_models_of_deepspeed() -> None:
    """Release every model of DeepSpeed that this process has started.

    It keeps 2 GB of address space for each of zero3, and the kernel refuses to fork a process of 24 GB.
    """
    while _of_deepspeed:
        _of_deepspeed.pop().release()


@dataclass
class OneProcess:
    """The strategy's model, and the loop around it."""

    job: Job
    model: ShardedModel
    device: torch.device

    @classmethod
    def start(
        cls, strategy: str, device: str = "cpu", spec: ModelSpec = SPEC, **sharding: object
    ) -> OneProcess:
        job = Job.model_validate(
            {
                "name": "steps",
                "model": "vit_micro_p8",
                "data": {"train": "none.tar", "tokenizer": {"vocab": "none.txt"}},
                "phases": [
                    {"name": "p", "samples": 80, "mask_ratio": 0.5, "batch_size": 8, "base_lr": 1.0e-3}
                ],
                "sharding": {"strategy": strategy, **sharding},
            }
        )
        world = World(0, 1, 0, 1, torch.device(device))
        model = shard(build_model(spec, device="meta"), job.sharding, job.optimizer, job.seed, world)
        if strategy.startswith("zero"):
            _of_deepspeed.append(model)
        return cls(job, model, world.device)

    def step(
        self, number: int, *, clip: float | None = None, finite: bool = True, pairs: Inputs | None = None
    ) -> tuple[float, float]:
        """Run one update, and return its loss and gradient norm."""
        on_host = make_pairs(number) if pairs is None else pairs
        moved = on_host.to(self.device)
        loss = accumulate_gradients(self.model, moved, self.job.loss, self.job.sharding.micro_batch)["loss"]
        norm = self.model.gradient_norm(clip)
        self.model.update(1e-3, torch.tensor(finite, device=self.device))
        return float(loss), float(norm)

    def steps(self, numbers: range, *, clip: float | None = None) -> list[tuple[float, float]]:
        return [self.step(number, clip=clip) for number in numbers]

    def copied_state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone().cpu() for name, tensor in self.model.state()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Check that two states have the same names and the same bits."""
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
