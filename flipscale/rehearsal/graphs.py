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
from flipscale.config import Job
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
_MICRO_BATCH = 3  # the second part of the pairs is smaller, as the last one of a share can be


def count_graphs(job: Job) -> CompileResult:
    """Run two steps of every phase in one process on the CPU, with two blocks per tower and few pairs.

    The blocks of a tower share their code, so two of them show what all of them do. The graphs are run as
    they are: no code is generated.

    Args:
        job: The job.
    """
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_module: Any = nn.Module.compile
    counting: Any = lambda module, **settings: compile_module(module, **{**settings, "backend": backend})  # noqa: E731

    torch._dynamo.reset()
    counters.clear()
    with mock.patch.object(nn.Module, "compile", counting):
        _run_phases(job)

    breaks = sum(counters["graph_break"].values())
    return CompileResult(len(graphs), breaks, max(0, len(graphs) - _expected(job)))


def _run_phases(job: Job) -> None:
    small = job.model_copy(
        update={
            "sharding": job.sharding.model_copy(
                update={
                    "strategy": "ddp",
                    "shard_size": None,
                    "precision": "fp32",
                    "offload_optimizer": False,
                }
                | ({} if job.sharding.micro_batch is None else {"micro_batch": _MICRO_BATCH})
            )
        }
    )
    world = World(0, 1, 0, 1, torch.device("cpu"))
    budget = Budget.of(job.phases, job.data.lanes)
    for span, spec in zip(budget.spans, phase_specs(_shallow(model_shape(job)), job), strict=True):
        model = shard(build_model(spec, device="meta"), small.sharding, small.optimizer, 0, world)
        updater = Updater(small, budget, 0, world, Progress.of_new_run())
        size = spec.vision.image_size
        batch: Any = SimpleNamespace(
            step=budget.step_at(span.start),
            images=torch.zeros(_PAIRS, 3, size, size, dtype=torch.uint8),
            tokens=torch.zeros(_PAIRS, spec.text.context_length, dtype=torch.int64),
            positions=torch.arange(_PAIRS),
        )
        for _ in range(2):
            stage: Any = SimpleNamespace(model=model, spec=spec)
            updater.update(stage, batch)
        model.release()


def _shallow(spec: ModelSpec) -> ModelSpec:
    """Return a model with two blocks per tower."""
    return replace(spec, vision=replace(spec.vision, layers=2), text=replace(spec.text, layers=2))


def _expected(job: Job) -> int:
    """Return the graphs that the shapes make necessary: one per tower, phase and size of a micro-batch."""
    sizes = 1 if job.sharding.micro_batch is None else 2
    return 2 * len(job.phases) * sizes
