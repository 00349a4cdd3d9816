"""What torch.compile makes of the blocks: graphs, breaks and recompilations over all phases of a job."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from flipscale.budget import Budget
from flipscale.config import Job, Phase
from flipscale.distributed.world import World
from flipscale.models.flip import build_model
from flipscale.models.of_job import phase_specs
from flipscale.models.presets import ModelSpec
from flipscale.planning.plan import model_shape
from flipscale.progress import Progress
from flipscale.rehearsal.results import CompileResult
from flipscale.sharding.shard import shard
from flipscale.training.update import Updater

_PAIRS = 4
_EVEN, _UNEVEN = 2, 3  # micro-batches of the pairs; the last one of a share can be smaller


def count_graphs(job: Job, gpus: int) -> CompileResult:
    """Run a step of every phase in one process on the CPU, with two blocks per tower and few pairs.

    The blocks of a tower share their code, so two of them show what all of them do. The graphs are run as
    they are: no code is generated.

    Args:
        job: The job.
        gpus: The number of GPUs; it says whether a share of a batch has micro-batches of two sizes.
    """
    compile_module: Any = nn.Module.compile

    def without_code(module: nn.Module, **settings: Any) -> None:
        compile_module(module, **{**settings, "backend": "eager"})

    torch._dynamo.reset()
    counters.clear()
    with mock.patch.object(nn.Module, "compile", without_code):
        _run_phases(job, gpus)

    frames = counters["frames"]
    return CompileResult(
        graphs=counters["stats"]["unique_graphs"],
        breaks=sum(counters["graph_break"].values()),
        uncompiled=frames["total"] - frames["ok"],
    )


def _run_phases(job: Job, gpus: int) -> None:
    world = World(0, 1, 0, 1, torch.device("cpu"))
    # The few pairs of a small step have micro-batches of their own.
    phases = [phase.model_copy(update={"micro_batch": None}) for phase in job.phases]
    budget = Budget.of(phases, job.data.lanes)
    shapes = phase_specs(_shallow(model_shape(job)), job)

    for phase, span, spec in zip(job.phases, budget.spans, shapes, strict=True):
        small = _on_one_process(job, phase, phase.batch_size // gpus)
        updater = Updater(small, budget, 0, world, Progress.of_new_run())
        model = shard(build_model(spec, device="meta"), small.sharding, small.optimizer, 0, world)
        size = spec.vision.image_size
        batch: Any = SimpleNamespace(
            step=budget.step_at(span.start),
            images=torch.zeros(_PAIRS, 3, size, size, dtype=torch.uint8),
            tokens=torch.zeros(_PAIRS, spec.text.context_length, dtype=torch.int64),
            lengths=(spec.text.context_length,) * _PAIRS,
            positions=torch.arange(_PAIRS),
        )
        stage: Any = SimpleNamespace(model=model, spec=spec)
        updater.update(stage, batch)


def _on_one_process(job: Job, phase: Phase, share: int) -> Job:
    """Return the job as one process on a CPU runs it; blocks are compiled alike with every strategy.

    Args:
        job: The job.
        phase: The phase.
        share: Pairs of a GPU in a step of the phase.
    """
    changes: dict[str, Any] = {
        "strategy": "ddp",
        "shard_size": None,
        "precision": "fp32",
        "offload_optimizer": False,
    }
    micro_batch = job.sharding.micro_batch_in(phase)
    if micro_batch is not None:
        parts = _UNEVEN if share % micro_batch else _EVEN
        changes["micro_batch"] = parts if micro_batch < share else None
    return job.model_copy(update={"sharding": job.sharding.model_copy(update=changes)})


def _shallow(spec: ModelSpec) -> ModelSpec:
    """Return a model with two blocks per tower."""
    return replace(spec, vision=replace(spec.vision, layers=2), text=replace(spec.text, layers=2))
