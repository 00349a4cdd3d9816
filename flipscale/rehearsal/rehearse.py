"""Rehearses a job: each phase in a process of its own, without a GPU and without memory of its size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

from flipscale.models.of_job import phase_specs
from flipscale.planning.fit import fits
from flipscale.planning.flops import training_flops
from flipscale.planning.memory import PhaseMemory, estimate_memory
from flipscale.planning.plan import model_shape
from flipscale.rehearsal.rehearsing_process import RehearsingProcesses
from flipscale.rehearsal.request import Request, digest_of_step
from flipscale.rehearsal.results import CompileResult, PhaseResult, Rehearsal
from flipscale.rehearsal.step_time import bound_step, time_of_collectives
from flipscale.scratch import scratch_directory

_OWN_REDUCER = (
    "the reducer of DistributedDataParallel; one with the same buckets, filled in the order of the "
    "parameters, took its place"
)
_NOT_FUSED = (
    "compiled kernels; the step ran uncompiled, so that norms, casts, sums and copies take longer here than "
    "in the job, and more kernels are started"
)
_UNCOMPILED_MEMORY = "the memory that compiled blocks save; the peak is that of the uncompiled step"


def rehearse(request: Request, report: Callable[[str], None] = lambda phase: None) -> Rehearsal:
    """Run a whole step of every phase on fake tensors, as one rank of the job.

    Args:
        request: What to rehearse.
        report: Called with the name of each phase that is done.

    Raises:
        UserError: If the strategy cannot be rehearsed.
    """
    phases = request.job.phases
    at_once = min(len(phases), len(os.sched_getaffinity(0)))
    with scratch_directory() as directory:
        processes = RehearsingProcesses(request, directory)

        def one(number: int) -> PhaseResult:
            result = _phase_result(request, number, processes.rehearse_phase(number))
            report(phases[number].name)
            return result

        # The threads wait for their processes, so that these end first.
        with ThreadPoolExecutor(at_once) as threads, processes.killed_on_error():
            results = tuple(threads.map(one, range(len(phases))))
        compiled = None
        if request.job.sharding.compile:
            compiled = CompileResult(**processes.count_graphs())

    limits = processes.limits
    if request.job.sharding.strategy == "ddp" and request.on.gpus > 1:
        limits = (*limits, _OWN_REDUCER)
    if compiled is not None:
        limits = (*limits, _limit_of_compiling(results))
    return Rehearsal(
        job=request.job.name,
        step_digest=digest_of_step(request.job),
        gpu=request.on.gpu.name,
        gpus=request.on.gpus,
        rank=request.rank,
        sees_waits=processes.sees_waits,
        limits=limits,
        phases=results,
        compiled=compiled,
    )


def _phase_result(request: Request, number: int, answer: dict[str, Any]) -> PhaseResult:
    job, gpu = request.job, request.on.gpu
    phase = job.phases[number]
    shape = model_shape(job)
    spec = phase_specs(shape, job)[number]
    pairs = phase.batch_size // request.on.gpus

    planned = _parts(estimate_memory(job, shape, request.on.gpus)[number])
    peak = sum(answer["peak"].values())
    model_flops = training_flops(spec, pairs, phase.mask_ratio, phase.text_mask_ratio)
    collectives = time_of_collectives(answer["collectives"], request.ranks_per_node, request.on.network)

    return PhaseResult(
        name=phase.name,
        pairs=pairs,
        memory=answer["peak"],
        peak=peak,
        planned=planned,
        planned_peak=sum(planned.values()),
        fits=fits(peak, gpu.memory),
        problems=answer["problems"],
        launches=answer["launches"],
        flops=answer["flops"],
        model_flops=model_flops,
        moved_bytes=answer["bytes"],
        device_seconds=answer["seconds"],
        not_fused=answer["not_fused"],
        collectives=collectives,
        time=bound_step(answer["seconds"], collectives, answer["launches"], model_flops, gpu.peak_flops),
    )


def _limit_of_compiling(phases: Iterable[PhaseResult]) -> str:
    reasons = {phase.not_fused for phase in phases if phase.not_fused is not None}
    if not reasons:
        return _UNCOMPILED_MEMORY
    known = "; ".join(sorted(reason for reason in reasons if reason))
    return f"{_NOT_FUSED} ({known})" if known else _NOT_FUSED


def _parts(memory: PhaseMemory) -> dict[str, int]:
    """Return the parts of an estimate that are in device memory."""
    return {field.name: getattr(memory, field.name) for field in fields(memory) if field.name != "host"}
