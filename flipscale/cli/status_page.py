"""The page and the JSON document of `flipscale status`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flipscale.cli.console import make_table
from flipscale.cli.status_segments import segments_table
from flipscale.formatting import format_count, format_duration, format_percent, format_rate
from flipscale.orchestration.status.outlook import failures
from flipscale.orchestration.status.run_status import SCHEMA, PhaseStatus, RunStatus
from flipscale.runs.snapshot import is_run
from flipscale.terminal import printable

_BAR_WIDTH = 30  # characters
_FAILURES_SHOWN = 4
_SILENT_SHOWN = 8
_LIST_HEADINGS = ("run", "state", "done", "samples", "images/s", "left", "loss", "GPU-hours", "next")


def status_document(path: Path, statuses: Sequence[RunStatus], problems: Sequence[str]) -> dict[str, object]:
    """Return the JSON document: of the run if `path` is one, else of all runs below it.

    Args:
        path: A run directory, or a directory with runs below.
        statuses: The runs that could be read.
        problems: A sentence for each run that could not be read.
    """
    if is_run(path):
        return asdict(statuses[0])

    return {"schema": SCHEMA, "runs": [asdict(status) for status in statuses], "problems": list(problems)}


def status_page(
    path: Path, statuses: Sequence[RunStatus], problems: Sequence[str], console: Console
) -> RenderableType:
    """Return the page: of the run if `path` is one, else a table of all runs below it.

    Args:
        path: A run directory, or a directory with runs below.
        statuses: The runs that could be read.
        problems: A sentence for each run that could not be read.
        console: The console that will show the page.
    """
    if is_run(path):
        return _run_page(statuses[0], console)

    table = make_table(_LIST_HEADINGS, [_list_row(path, status) for status in statuses])
    warnings = [*dict.fromkeys(_slurm_problem(status) for status in statuses), *problems]
    return Group(table, *(Text(f"warning: {_plain(warning)}") for warning in warnings if warning))


def _list_row(root: Path, status: RunStatus) -> list[str]:
    speed = status.speed
    training = status.training
    return [
        str(Path(status.path).relative_to(root)),
        status.state,
        format_percent(status.samples / status.samples_total),
        f"{format_count(status.samples)} of {format_count(status.samples_total)}",
        "" if speed.images_per_second is None else format_rate(speed.images_per_second),
        "" if speed.eta_seconds is None else format_duration(speed.eta_seconds),
        "" if training is None or training.loss is None else f"{training.loss:.4f}",
        f"{status.gpu_hours:,.1f}",
        status.next,
    ]


def _slurm_problem(status: RunStatus) -> str:
    """Return the sentence of a Slurm that did not answer; `slurm` is a single word if Slurm answered."""
    return status.slurm if " " in status.slurm else ""


def _run_page(status: RunStatus, console: Console) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(overflow="fold")

    facts.add_row("run", Text.assemble((_plain(status.name), "bold"), f"  {_plain(status.path)}"))
    facts.add_row("state", Text.assemble((status.state, "bold"), f"  {_plain(status.next)}"))
    for phase in status.phases:
        facts.add_row(_plain(phase.name), _phase(phase, unicode=console.encoding.startswith("utf")))

    for name, text in (
        ("speed", _speed(status)),
        ("training", _training(status)),
        ("checkpoint", _checkpoint(status)),
        ("cost", _cost(status)),
        ("job", _jobs(status)),
        ("processes", _processes(status)),
        ("unusable", _unusable(status)),
    ):
        if text:
            facts.add_row(name, _plain(text))

    for process in failures(status.processes)[:_FAILURES_SHOWN]:
        failure = f"rank {process.rank} ({process.node}), {process.kind}: {process.message}"
        facts.add_row("failure", _plain(failure))
    return Group(facts, segments_table(status.segments)) if status.segments else facts


def _plain(text: str) -> str:
    """Return a text on one line: nothing in the files of a run can add a row or steer the terminal."""
    return printable(text, keep="")


def _phase(phase: PhaseStatus, *, unicode: bool) -> str:
    """Return the bar, the share and the counts of a phase."""
    full, empty = ("█", "░") if unicode else ("#", "-")
    filled = _BAR_WIDTH * phase.samples_done // phase.samples
    bar = full * filled + empty * (_BAR_WIDTH - filled)

    share = f"{phase.samples_done / phase.samples:7.2%}"
    counts = f"{format_count(phase.samples_done)} of {format_count(phase.samples)} samples"
    return f"{bar} {share}  {counts}"


def _speed(status: RunStatus) -> str:
    speed = status.speed
    parts: list[str] = []

    if speed.images_per_second is not None:
        parts.append(f"{format_rate(speed.images_per_second)} images/s{_waiting(speed.data_wait_fraction)}")
    if speed.tflops is not None:
        share = "" if speed.mfu is None else f" ({format_percent(speed.mfu)} of its peak)"
        parts.append(f"{speed.tflops:,.3g} TFLOP/s per process{share}")
    if speed.effective_images_per_second is not None:
        effective = format_rate(speed.effective_images_per_second)
        parts.append(f"{effective} with queues, start-ups and replays")

    if speed.eta_seconds and speed.eta_from == "history":
        parts.append(f"{format_duration(speed.eta_seconds)} left at that pace")
    elif speed.eta_seconds:
        left = format_duration(speed.eta_seconds)
        parts.append(f"{left} left by the speed only, without queues and restarts")

    return "; ".join(parts)


def _waiting(share: float | None) -> str:
    return "" if share is None else f" ({format_percent(share)} of the time waiting for data)"


def _training(status: RunStatus) -> str:
    line = status.training
    if line is None:
        return ""

    loss = "not finite" if line.loss is None else f"{line.loss:.4f}"
    age = format_duration(line.age_seconds)
    return f"loss {loss}, lr {line.lr:.4g}, step {line.step:,} of phase {line.phase}, {age} ago"


def _checkpoint(status: RunStatus) -> str:
    if status.checkpoint is None:
        return "none yet"

    age = format_duration(status.checkpoint.age_seconds)
    return f"{format_count(status.checkpoint.samples)} samples, {age} old"


def _cost(status: RunStatus) -> str:
    lost = status.lost
    parts = (
        f"start-up {format_duration(lost.startup_seconds)}",
        f"replay {format_duration(lost.replay_seconds)}",
        f"queue {format_duration(lost.queue_seconds)}",
    )
    total = f"{format_duration(lost.total_seconds)} and {lost.gpu_hours:,.2f} GPU-hours"
    return f"{status.gpu_hours:,.2f} GPU-hours; lost {total} ({', '.join(parts)})"


def _jobs(status: RunStatus) -> str:
    parts = [_slurm_problem(status)] if _slurm_problem(status) else []
    for job in status.jobs:
        nodes = f" on {job.nodes}" if job.nodes and not job.waits else ""
        reason = f" ({job.reason})" if job.reason else ""
        parts.append(f"{job.cluster} {job.job_id} {job.state}{reason}{nodes}")

    return "; ".join(parts)


def _processes(status: RunStatus) -> str:
    if not status.processes:
        return ""

    counts = Counter(process.state for process in status.processes)
    parts = [f"{count} {state}" for state, count in counts.items()]
    if status.unheard:
        parts.append(f"{status.unheard} without any sign yet")

    silent = [process for process in status.processes if process.silent]
    for process in silent[:_SILENT_SHOWN]:
        state = "gone" if process.gone else "silent"
        age = format_duration(process.age_seconds)
        parts.append(f"rank {process.rank} ({process.node}) {state} for {age}")
    if len(silent) > _SILENT_SHOWN:
        parts.append(f"and {len(silent) - _SILENT_SHOWN} more silent")

    newest = min(process.age_seconds for process in status.processes)
    return "; ".join([*parts, f"last sign of life {format_duration(newest)} ago"])


def _unusable(status: RunStatus) -> str:
    about = "about " if status.quarantined_is_estimate else ""
    skipped = status.training.skipped_steps if status.training else 0
    return f"{skipped:,} steps skipped, {about}{status.quarantined:,} samples quarantined"
