"""The cost of training up to a number of samples: FLOPs by the job, GPU-hours by the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from flipscale.config import Phase
from flipscale.models.presets import ModelSpec
from flipscale.planning.flops import CAPTION_TOKENS, training_flops
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import read_ledger


def flops_at(phases: Sequence[Phase], shapes: Sequence[ModelSpec], samples: int) -> float:
    """Return the FLOPs of the first samples of a job, forward and backward.

    Args:
        phases: The phases of the job.
        shapes: The shape of the model in each phase.
        samples: Number of samples, from the start of the first phase.
    """
    total = 0
    left = samples
    for phase, spec in zip(phases, shapes, strict=True):
        seen = min(left, phase.samples)
        ratios = (phase.mask_ratio, phase.text_mask_ratio)
        total += training_flops(spec, seen, *ratios, caption_tokens=CAPTION_TOKENS)
        left = max(0, left - phase.samples)

    return float(total)


def gpu_hours_at(run: RunDirectory, samples: int) -> float | None:
    """Return the processes x hours that a run took to reach a number of samples.

    Within a segment, the time is divided in proportion to samples. Samples that were trained twice count
    twice. The ledger lacks the current segment, and a killed segment until the run has started again.

    Args:
        run: The run.
        samples: Number of samples seen.

    Returns:
        GPU-hours, or None if no segment in the ledger reaches so many samples.
    """
    lines = read_ledger(run.path)
    reached = [place for place, line in enumerate(lines) if line.samples_from < samples <= line.samples_to]
    if not reached:
        return None

    place = reached[-1]  # a run that was rolled back after damage passes here again
    last = lines[place]
    before = sum(line.gpu_seconds for line in lines[:place])
    within = last.gpu_seconds * (samples - last.samples_from) / (last.samples_to - last.samples_from)

    return (before + within) / 3600
