"""A rehearsal with made-up numbers, as `submit --rehearse` keeps it in a run directory."""

from __future__ import annotations

from flipscale.config import Job
from flipscale.rehearsal.request import digest_of_step
from flipscale.rehearsal.results import CompileResult, PhaseResult, Rehearsal, StepTime


def made_up_rehearsal(job: Job | None = None) -> Rehearsal:
    """Return a rehearsal of one phase, whose step fits and waits once.

    Args:
        job: The job that was rehearsed; by default none that a run has.
    """
    digest = "" if job is None else digest_of_step(job)
    phase = PhaseResult(
        name="masked",
        pairs=256,
        memory={"weights": 40 * 2**30},
        peak=40 * 2**30,
        planned={"weights": 41 * 2**30},
        planned_peak=41 * 2**30,
        fits=True,
        problems={"item waits for the device (model.py:7)": 1},
        launches=3385,
        flops=10**14,
        model_flops=10**14,
        moved_bytes=10**11,
        device_seconds={"products": 0.3},
        not_fused=None,
        collectives=(),
        time=StepTime(0.3, 0.05, 0.01, 0.017, 0.312, "operations", 0.459),
    )
    compiled = CompileResult(graphs=3, breaks=0, uncompiled=1)
    return Rehearsal("first", digest, "h100-80gb", 256, 0, True, ("the rest",), (phase,), compiled)
