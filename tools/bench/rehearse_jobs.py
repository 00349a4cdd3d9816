"""Rehearse the paper's jobs, and write a page with what their steps do.

    python tools/bench/rehearse_jobs.py --out docs/benchmarks/rehearsal_paper_jobs_DATE.md

A step that several jobs share is rehearsed once. It takes about twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from flipscale.config import Job, load_job
from flipscale.planning.throughput import Speed, make_speed
from flipscale.rehearsal.rehearse import rehearse
from flipscale.rehearsal.request import make_request
from flipscale.rehearsal.results import PhaseResult, Rehearsal

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "table1", "table2", "clip", "clipa", "openclip")
NOT_OF_THE_PAPER = ("quickstart", "toy")

PAGE = """# The steps of the paper's jobs, rehearsed

Commit {commit}, {date}, torch {torch}, for {gpu}.
Made by `tools/bench/rehearse_jobs.py` in {minutes:.0f} minutes; raw numbers: `{raw}`.

Each row is a phase of a job as rank 0 of all its GPUs, run by [`flipscale rehearse`](../rehearsal.md) on
fake tensors. No GPU was used: memory, collectives, kernels and operations are counted, times are that page's
model. A phase that an earlier row has already shown is left out.

## Memory

GiB of the peak by what it is for, and the estimate of `flipscale plan`. State is weights, gradients and
moments. The largest difference is {largest:.1%}.

{memory}

## Work and time

Collectives are calls and GB in a step. The bound is the larger of the device's time with exposed
collectives, and of the host's time to start the kernels.

{work}
"""
MEMORY = ("job, phase", "pairs", "state", "gathered", "activations", "loss", "peak", "plan", "difference")
WORK = (
    *("job, phase", "kernels", "TFLOP", "gathers", "reductions", "device ms", "exposed ms", "launch ms"),
    *("bound ms", "by", "MFU", "waits"),
)


def main() -> None:
    """Rehearse the jobs and write the page."""
    parser = argparse.ArgumentParser(description="Rehearse the paper's jobs, and write a page.")
    parser.add_argument("--out", type=Path, required=True, help="the page; its numbers get the suffix .json")
    parser.add_argument("--gpu", default="h100-80gb")
    parser.add_argument("--only", default="", help="jobs whose path contains this")
    options = parser.parse_args()

    began = time.monotonic()
    rows: list[tuple[str, PhaseResult]] = []
    found: dict[str, Rehearsal] = {}
    for name, job in _new_steps(options.only):
        print(f"{name} ...", flush=True)
        found[name] = rehearse(make_request(job, _speed(job, options.gpu)))
        rows += [(f"{name}, {phase.name}", phase) for phase in found[name].phases]

    raw = options.out.with_suffix(".json")
    raw.write_text(json.dumps({name: asdict(each) for name, each in found.items()}, indent=1) + "\n")
    options.out.write_text(
        PAGE.format(
            commit=_git("rev-parse", "--short", "HEAD"),
            date=time.strftime("%Y-%m-%d"),
            torch=torch.__version__,
            gpu=options.gpu,
            minutes=(time.monotonic() - began) / 60,
            raw=raw.name,
            largest=max(abs(phase.peak / phase.planned_peak - 1) for _, phase in rows),
            memory=_table(MEMORY, [_memory_cells(name, phase) for name, phase in rows]),
            work=_table(WORK, [_work_cells(name, phase) for name, phase in rows]),
        )
    )


def _speed(job: Job, gpu: str) -> Speed:
    return make_speed(gpu, job.cluster.gpus, gpus_per_node=job.cluster.gpus_per_node)


def _new_steps(only: str) -> Iterator[tuple[str, Job]]:
    """Yield every job of the paper, with only the phases whose step no earlier job has."""
    seen: set[str] = set()
    for path in sorted(path for folder in FOLDERS for path in (ROOT / "jobs" / folder).glob("*.yaml")):
        name = path.relative_to(ROOT / "jobs").with_suffix("").as_posix()
        if name in NOT_OF_THE_PAPER or only not in name:
            continue

        job = load_job(path, [])
        phases = tuple(phase for phase in job.phases if _is_new(job, phase, seen))
        if phases:
            yield name, job.model_copy(update={"phases": phases})


def _is_new(job: Job, phase: object, seen: set[str]) -> bool:
    """Return whether no job before has the step of a phase, and remember it."""
    step = job.model_dump(include={"model", "sharding", "loss", "cluster"}, mode="json")
    settings = ("mask_ratio", "text_mask_ratio", "text_mask", "batch_size", "image_size", "patch_size")
    key = json.dumps([step, [str(getattr(phase, setting)) for setting in settings]])
    is_new = key not in seen
    seen.add(key)
    return is_new


def _table(headings: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _memory_cells(name: str, phase: PhaseResult) -> list[str]:
    memory = phase.memory
    state = sum(memory.get(part, 0) for part in ("weights", "gradients", "moments"))
    rest = (memory.get(part, 0) for part in ("gathered", "activations", "loss"))
    return [
        name,
        f"{phase.pairs:,}",
        *(_gib(size) for size in (state, *rest, phase.peak, phase.planned_peak)),
        f"{phase.peak / phase.planned_peak - 1:+.1%}",
    ]


def _work_cells(name: str, phase: PhaseResult) -> list[str]:
    took = phase.time
    return [
        name,
        f"{phase.launches:,}",
        f"{phase.flops / 1e12:.1f}",
        _collectives(phase, ("all_gather", "broadcast")),
        _collectives(phase, ("reduce_scatter", "all_reduce", "reduce")),
        *(f"{1e3 * seconds:.1f}" for seconds in (took.device, took.exposed, took.launches, took.total)),
        took.bound_by,
        f"{took.mfu:.0%}",
        f"{sum(phase.problems.values())}",
    ]


def _collectives(phase: PhaseResult, kinds: tuple[str, ...]) -> str:
    chosen = [each for each in phase.collectives if each.kind in kinds]
    calls = sum(each.count for each in chosen)
    return f"{calls:,}, {sum(each.count * each.bytes for each in chosen) / 1e9:.2f} GB"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
