"""One step of one phase on fake tensors: the program's own `shard` and `Updater`, watched."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.distributed.world import World
from flipscale.models.flip import build_model
from flipscale.models.presets import ModelSpec
from flipscale.progress import Progress
from flipscale.rehearsal.collectives import Collective
from flipscale.rehearsal.device_time import DeviceTime
from flipscale.rehearsal.live_memory import LiveMemory
from flipscale.rehearsal.recorder import Recorder
from flipscale.sharding.shard import shard
from flipscale.training.update import Updater

_PADDING_ID = 0  # any id: the masks of texts need one


@dataclass(frozen=True)
class StepRecord:
    """What one step of one rank does."""

    peak: dict[str, int]
    """Bytes of device memory at the peak, by what they are for."""
    problems: dict[str, int]
    """What makes the host wait for the device or mixes devices, and how often in a step."""
    launches: int
    """Kernels."""
    flops: int
    """Floating-point operations of products and attention, recomputed ones included."""
    bytes: int
    """Bytes of device memory that kernels read or write."""
    seconds: dict[str, float]
    """Modelled seconds of the device by kind of work."""
    collectives: tuple[tuple[Collective, int], ...]
    """The collectives, and how often each is called."""


class OnePhase:
    """Builds the model of one phase as a rank of the job shards it, and runs steps.

    Call it inside of `fake_device` and `fake_world`.

    Args:
        job: The job.
        phase: The number of the phase.
        spec: The shape of the model in the phase.
        world: The rank.
        time: The model of the device's time.
    """

    def __init__(self, job: Job, phase: int, spec: ModelSpec, world: World, time: DeviceTime) -> None:
        self._job = job
        self._spec = spec
        self._world = world
        self._time = time
        self._memory = memory = LiveMemory()

        budget = Budget.of(job.phases, job.data.lanes)
        # The first step of a phase can also clear the moments, so that a second one is recorded.
        first, *later = islice(budget.steps_from(budget.spans[phase].start), 2)
        alike = [step for step in later if (step.phase, step.size) == (phase, first.size)]
        self._step = first
        self._next = alike[0] if alike else first
        self._pairs = self._step.size // world.size

        # What is allocated here stays: weights, moments, and the buffers of a library.
        with Recorder(world.device.type, time, memory):
            self._model = shard(
                build_model(spec, device="meta"), job.sharding, job.optimizer, job.seed, world
            )
            self._updater = Updater(job, budget, _PADDING_ID, world, Progress.of_new_run())
        memory.begin_steps()

    def warm_up(self) -> None:
        """Run the first step of the phase, which also allocates lasting buffers."""
        self._update()
        self._step = self._next

    def run(self, waits: list[str]) -> StepRecord:
        """Run the second step of the phase, or the first again if it has only one; return its record.

        Args:
            waits: The list to which the fake device adds where the host waits for it.
        """
        waits.clear()
        self._memory.restart()
        recorder = self._update()
        recorder.problems.update(waits)
        return StepRecord(
            self._memory.at_peak(),
            dict(recorder.problems),
            recorder.launches.total(),
            recorder.flops,
            recorder.bytes.total(),
            dict(recorder.seconds),
            tuple(recorder.collectives.counts.items()),
        )

    def _update(self) -> Recorder:
        recorder = Recorder(self._world.device.type, self._time, self._memory)
        with self._memory.following_resizes(), recorder:
            with self._memory.labelled("batch"):
                batch = self._batch()
            stage: Any = SimpleNamespace(model=self._model, spec=self._spec)
            self._updater.update(stage, batch)
        return recorder

    def _batch(self) -> Any:
        """Return a batch as the stream hands it over: on the device."""
        size = self._spec.vision.image_size
        images = self._empty(self._pairs, 3, size, size, dtype=torch.uint8)
        tokens = self._empty(self._pairs, self._spec.text.context_length, dtype=torch.int64)
        positions = self._empty(self._pairs, dtype=torch.int64)

        # The longest captions: the peak of memory that none exceeds.
        lengths = (self._spec.text.context_length,) * self._pairs

        return SimpleNamespace(
            step=self._step, images=images, tokens=tokens, lengths=lengths, positions=positions
        )

    def _empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._world.device)
