"""The page and the JSON document of `flipscale status`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flipscale.cli.console import make_table
from flipscale.formatting import format_count, format_duration, format_percent, format_rate
from flipscale.orchestration.status.history import SegmentStatus
from flipscale.orchestration.status.outlook import failures
from flipscale.orchestration.status.run_status import SCHEMA, RunStatus
from flipscale.runs.snapshot import is_run

_SEGMENTS_SHOWN = 12
_BAR_WIDTH = 30


def status_document(path: Path, statuses: Sequence[RunStatus], problems: Sequence[str]) -> dict[str, object]:
    if is_run(path):
        return asdict(statuses[0])
    return {"schema": SCHEMA, "runs": [asdict(status) for status in statuses], "problems": list(problems)}


def status_page(
    path: Path, statuses: Sequence[RunStatus], problems: Sequence[str], console: Console
) -> RenderableType:
    if is_run(path):
        return _run_page(statuses[0], console)
    rows: list[list[str]] = []
    for status in statuses:
        speed, lines = status.speed, status.training
        rows.append(
            [
                _below(path, status.path),
                status.state,
                format_percent(status.samples / status.samples_total),
                f"{format_count(status.samples)} of {format_count(status.samples_total)}",
                _images(speed.images_per_second),
                format_duration(speed.eta_seconds) if speed.eta_seconds is not None else "",
                f"{lines.loss:.4f}" if lines and lines.loss is not None else "",
                f"{status.gpu_hours:,.1f}",
                status.next,
            ]
        )
    headings = ("run", "state", "done", "samples", "images/s", "left", "loss", "GPU-hours", "next")
    said = [*dict.fromkeys(status.slurm for status in statuses if " " in status.slurm), *problems]
    return Group(make_table(headings, rows), *(Text(f"warning: {sentence}") for sentence in said))


def _run_page(status: RunStatus, console: Console) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("run", Text.assemble((status.name, "bold"), f"  {status.path}"))
    facts.add_row("state", Text.assemble((status.state, "bold"), f"  {status.next}"))
    full, empty = ("█", "░") if console.encoding.startswith("utf") else ("#", "-")
    for phase in status.phases:
        filled = _BAR_WIDTH * phase.samples_done // phase.samples
        bar = full * filled + empty * (_BAR_WIDTH - filled)
        share = f"{phase.samples_done / phase.samples:7.2%}"
        counts = f"{format_count(phase.samples_done)} of {format_count(phase.samples)} samples"
        facts.add_row(phase.name, f"{bar} {share}  {counts}")
    for name, told in (
        ("speed", _speed(status)),
        ("training", _training(status)),
        ("checkpoint", _checkpoint(status)),
        ("cost", _cost(status)),
        ("job", _jobs(status)),
        ("processes", _processes(status)),
        ("unusable", _unusable(status)),
    ):
        if told:
            facts.add_row(name, told)
    for process in failures(status.processes)[:4]:
        facts.add_row("failure", f"rank {process.rank} ({process.node}), {process.kind}: {process.message}")
    return Group(facts, _segments(status)) if status.segments else facts


def _speed(status: RunStatus) -> str:
    speed, told = status.speed, []
    if speed.images_per_second is not None:
        waited = f" ({format_percent(speed.data_wait_fraction)} of the time waiting for data)"
        told.append(_images(speed.images_per_second) + " images/s" + waited)
    if speed.effective_images_per_second is not None:
        told.append(_images(speed.effective_images_per_second) + " with queues, start-ups and replays")
    if speed.eta_seconds and speed.eta_from == "history":
        told.append(f"{format_duration(speed.eta_seconds)} left at that pace")
    elif speed.eta_seconds:
        told.append(
            f"{format_duration(speed.eta_seconds)} left from speed alone, without queues and restarts"
        )
    return "; ".join(told)


def _training(status: RunStatus) -> str:
    line = status.training
    if line is None:
        return ""
    loss = "not finite" if line.loss is None else f"{line.loss:.4f}"
    when = format_duration(line.age_seconds)
    return f"loss {loss}, lr {line.lr:.4g}, step {line.step:,} of phase {line.phase}, {when} ago"


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
    told = [status.slurm] if " " in status.slurm else []
    for job in status.jobs:
        where = f" on {job.nodes}" if job.nodes and not job.waits else ""
        why = f" ({job.reason})" if job.reason else ""
        told.append(f"{job.cluster} {job.job_id} {job.state}{why}{where}")
    return "; ".join(told)


def _processes(status: RunStatus) -> str:
    if not status.processes:
        return ""
    counts: dict[str, int] = {}
    for process in status.processes:
        counts[process.state] = counts.get(process.state, 0) + 1
    told = [f"{count} {state}" for state, count in counts.items()]
    if status.unheard:
        told.append(f"{status.unheard} without any sign yet")
    silent = [process for process in status.processes if process.silent]
    for process in silent[:8]:
        what = "gone" if process.gone else "silent"
        told.append(f"rank {process.rank} ({process.node}) {what} for {format_duration(process.age_seconds)}")
    if len(silent) > 8:
        told.append(f"and {len(silent) - 8} more silent")
    newest = min(process.age_seconds for process in status.processes)
    return "; ".join([*told, f"last sign of life {format_duration(newest)} ago"])


def _unusable(status: RunStatus) -> str:
    about = "about " if status.quarantined_is_estimate else ""
    skipped = status.training.skipped_steps if status.training else 0
    return f"{skipped:,} steps skipped, {about}{status.quarantined:,} samples quarantined"


_SEGMENT_HEADINGS = (
    "segment",
    "ended",
    "job",
    "nodes",
    "processes",
    "samples",
    "lasted",
    "GPU-hours",
    "queue",
    "start-up",
    "lost",
    "detail",
)


def _segments(status: RunStatus) -> RenderableType:
    shown = status.segments[-_SEGMENTS_SHOWN:]
    table = make_table(_SEGMENT_HEADINGS, [_segment_row(segment) for segment in shown])
    hidden = len(status.segments) - len(shown)
    return Group(Text(f"{hidden} segments before these (--json has all)"), table) if hidden else table


def _segment_row(segment: SegmentStatus) -> list[str]:
    more = f" and {len(segment.nodes) - 4} more" if segment.nodes[4:] else ""
    lost = f"{format_count(segment.lost_samples)} in {format_duration(segment.lost_seconds)}"
    suspects = f"suspected: {', '.join(segment.suspects)}" if segment.suspects else ""
    return [
        str(segment.segment),
        segment.reason,
        f"{segment.job_id}.{segment.restarts}" if segment.restarts else segment.job_id,
        ", ".join(segment.nodes[:4]) + more,
        str(segment.world_size),
        f"{format_count(segment.samples_from)} to {format_count(segment.samples_to)}",
        format_duration(segment.seconds),
        f"{segment.gpu_hours:,.2f}",
        format_duration(segment.queue_seconds),
        format_duration(segment.startup_seconds),
        lost if segment.lost_samples else "",
        "; ".join(part for part in (segment.detail, suspects) if part),
    ]


def _images(speed: float | None) -> str:
    return "" if speed is None else format_rate(speed)


def _below(root: Path, path: str) -> str:
    return str(Path(path).relative_to(root))
