"""The process of one rehearsal: reads a request from stdin, and writes what a step does to a file.

It is a process of its own because the fake accelerator must be there before torch is imported, and because a
rehearsal replaces parts of torch.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flipscale.child_process import die_with_parent
from flipscale.rehearsal.accelerator import load_accelerator


def main() -> None:
    """Answer one request."""
    gc.set_threshold(100_000, 20)  # as in the command: imports make hardly any garbage
    request: dict[str, Any] = json.loads(sys.stdin.read())
    die_with_parent(request["parent"])
    if request["library"]:
        load_accelerator(Path(request["library"]))
    answer = _compiled(request) if request["phase"] is None else rehearse_phase(request)
    Path(request["answer"]).write_text(json.dumps(answer))


def rehearse_phase(request: dict[str, Any]) -> dict[str, Any]:
    """Run a step of a phase; the fake accelerator is loaded unless `request["library"]` is empty.

    Args:
        request: A question of `RehearsingProcesses`.

    Returns:
        The fields of `StepRecord`, and `not_fused` of `PhaseResult`.
    """
    import torch

    from flipscale.config import Job
    from flipscale.models.of_job import phase_specs
    from flipscale.planning.plan import model_shape
    from flipscale.rehearsal.block_calls import counted_block_calls
    from flipscale.rehearsal.compiled_step import NotFused, cost_uncompiled, fuse_kernels
    from flipscale.rehearsal.device_time import DeviceTime
    from flipscale.rehearsal.fake_device import fake_device
    from flipscale.rehearsal.fake_world import fake_world
    from flipscale.rehearsal.one_phase import OnePhase

    job = Job.model_validate_json(request["job"])
    fuses = job.sharding.compile and bool(request["library"])
    # Fake tensors cannot run generated code; `_compiled` looks at the graphs.
    job = job.model_copy(update={"sharding": job.sharding.model_copy(update={"compile": False})})
    phase: int = request["phase"]
    strategy = job.sharding.strategy
    spec = phase_specs(model_shape(job), job)[phase]
    device = torch.device("cuda", 0) if request["library"] else torch.device("cpu")

    waits: list[str] = []
    time = DeviceTime(**request["time"])
    place = (request["rank"], request["gpus"], request["ranks_per_node"])
    with fake_world(*place, device, strategy) as world, fake_device(device, waits):
        rehearsed = OnePhase(job, phase, spec, world, time)
        rehearsed.warm_up()
        with counted_block_calls() as calls:
            record = rehearsed.run(waits)
        uncompiled = {call: cost_uncompiled(call, device, time) for call in calls} if fuses else {}

    not_fused = None if fuses else ""
    if fuses:
        try:
            record = fuse_kernels(record, calls, uncompiled, device, time)
        except NotFused as error:
            not_fused = str(error)
    collectives = [{**asdict(collective), "count": count} for collective, count in record.collectives]
    return {**asdict(record), "collectives": collectives, "not_fused": not_fused}


def _compiled(request: dict[str, Any]) -> dict[str, Any]:
    from flipscale.config import Job
    from flipscale.rehearsal.graphs import count_graphs

    return asdict(count_graphs(Job.model_validate_json(request["job"]), request["gpus"]))


if __name__ == "__main__":
    main()
