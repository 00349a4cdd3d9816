"""The section of a run with its segments: progress over time, why they ended, and lost time."""

from __future__ import annotations

from collections.abc import Sequence

from flipscale.formatting import format_duration, format_quantity
from flipscale.orchestration.status.history import SegmentStatus, needs_a_person, unix_time
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import Cell, Column, Note, PlotBlock, PlotGrid, Section, Table, Tone
from flipscale.reporting.page.cells import NONE, count_cell, duration_cell
from flipscale.reporting.run.facts import RunFacts

_INTERRUPTED = "#c29a1c"
_FAILED = "#d1495b"
_ENDED = "#7d8690"
_MOST_MARKS = 60  # newest ends of segments that are marked on curves


def segment_marks(facts: RunFacts) -> list[tuple[float, str]]:
    """Return the samples at which segments ended, with the colour of the reason."""
    ended = [segment for segment in facts.status.segments if segment.ended and segment.reason != "done"]
    return [(segment.samples_to, _colour(segment.reason)) for segment in ended[-_MOST_MARKS:]]


def _colour(reason: str) -> str:
    if reason in ("done", "stopped", "running"):
        return _ENDED
    if reason in ("preempted", "timeout") and not needs_a_person(reason):
        return _INTERRUPTED
    return _FAILED


def _tone(reason: str) -> Tone:
    colour = _colour(reason)
    if colour == _FAILED:
        return "bad"
    return "strong" if colour == _INTERRUPTED else ""


def segment_section(facts: RunFacts) -> Section:
    """Show the segments of the run over time and as a table."""
    segments = facts.status.segments
    if not segments:
        never = Note("No segment was recorded: the run was never started.", missing=True)
        return Section("Segments", [never])

    lost = facts.status.lost
    summary = Note(
        f"{format_quantity(len(segments), 'start')}; "
        f"lost: {format_duration(lost.startup_seconds)} of start-up, "
        f"{format_duration(lost.replay_seconds)} of training that was repeated, "
        f"{format_duration(lost.queue_seconds)} in the queue."
    )
    progress = _progress_plot(segments, facts.status.time)
    return Section("Segments", [summary, PlotGrid([progress]), _table(segments)])


def _progress_plot(segments: Sequence[SegmentStatus], now: float) -> PlotBlock:
    """Draw the samples at checkpoints over the time since the first start.

    Args:
        segments: The segments of the run.
        now: The time up to which a segment without an end has lasted, in seconds since 1970.
    """
    times = [time for segment in segments if (time := unix_time(segment.started)) is not None]
    first = min(times, default=0.0)
    ends = [unix_time(segment.ended or "") or first for segment in segments]
    unit, unit_seconds = _time_unit(max([*times, *ends]) - first)
    figure = plots.new_figure(f"{unit} since the first start", "samples at checkpoints")

    marks: dict[str, list[tuple[float, float, str]]] = {}
    for segment in segments:
        began = unix_time(segment.started)
        ended = unix_time(segment.ended) if segment.ended else now
        if began is None or ended is None:
            continue

        x = [(began - first) / unit_seconds, (ended - first) / unit_seconds]
        line = plots.Points("", x, [segment.samples_from, segment.samples_to], plots.colour(0))
        plots.add_line(figure, line, hover=f"segment {segment.segment}: %{{y:,}} samples")
        text = f"segment {segment.segment}: {segment.reason}"
        marks.setdefault(segment.reason, []).append((x[1], segment.samples_to, text))

    for reason, places in marks.items():
        x, y, texts = (list(column) for column in zip(*places, strict=True))
        points = plots.Points(reason, x, y, _colour(reason), texts)
        plots.add_points(figure, points, hover="%{y:,} samples", size=10)

    caption = "A mark is the end of a segment; a gap is time without a process."
    return PlotBlock("Progress over time", plots.to_document(figure), caption)


def _time_unit(span: float) -> tuple[str, float]:
    """Return the unit in which to show a span of seconds, and the unit's length in seconds."""
    for unit, seconds in (("minutes", 60.0), ("hours", 3600.0)):
        if span <= 120 * seconds:
            return unit, seconds
    return "days", 86400.0


def _table(segments: Sequence[SegmentStatus]) -> Table:
    columns = [
        Column("segment"),
        Column("ended by", False),
        Column("started (UTC)", False),
        *(Column(name) for name in ("wall time", "samples from", "to", "GPU-hours", "processes", "start-up")),
        Column("queue", hint="since the previous segment"),
        Column("lost samples", hint="trained after the last checkpoint; the next segment trains them again"),
        Column("lost time"),
        Column("stop", hint="from the request to stop to the end"),
        *(Column(name, False) for name in ("job", "nodes", "detail")),
    ]
    return Table(columns, [_row(segment) for segment in segments], "The ledger")


def _row(segment: SegmentStatus) -> list[Cell]:
    nodes = ", ".join(segment.nodes)
    return [
        Cell(str(segment.segment), segment.segment),
        Cell(segment.reason, tone=_tone(segment.reason)),
        Cell(segment.started[:19].replace("T", " ")),
        duration_cell(segment.seconds),
        count_cell(segment.samples_from),
        count_cell(segment.samples_to),
        Cell(f"{segment.gpu_hours:.2f}", segment.gpu_hours),
        Cell(str(segment.world_size), segment.world_size),
        duration_cell(segment.startup_seconds),
        duration_cell(segment.queue_seconds),
        count_cell(segment.lost_samples),
        duration_cell(segment.lost_seconds),
        duration_cell(segment.stop_seconds),
        Cell(segment.job_id) if segment.job_id else NONE,
        Cell(nodes) if nodes else NONE,
        Cell(segment.detail) if segment.detail else NONE,
    ]
