"""The table of segments on the page of `flipscale status`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from flipscale.cli.console import make_table
from flipscale.formatting import format_count, format_duration
from flipscale.orchestration.status.history import SegmentStatus

_SEGMENTS_SHOWN = 12
_NODES_SHOWN = 4
_HEADINGS = (
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


def segments_table(segments: Sequence[SegmentStatus]) -> RenderableType:
    """Return a table of the newest segments, and a line that counts the older ones."""
    shown = segments[-_SEGMENTS_SHOWN:]
    table = make_table(_HEADINGS, [_row(segment) for segment in shown])

    hidden = len(segments) - len(shown)
    return Group(Text(f"{hidden} segments before these (--json has all)"), table) if hidden else table


def _row(segment: SegmentStatus) -> list[str]:
    lost = f"{format_count(segment.lost_samples)} in {format_duration(segment.lost_seconds)}"
    suspects = f"suspected: {', '.join(segment.suspects)}" if segment.suspects else ""
    return [
        str(segment.segment),
        segment.reason,
        f"{segment.job_id}.{segment.restarts}" if segment.restarts else segment.job_id,
        _nodes(segment.nodes),
        str(segment.world_size),
        f"{format_count(segment.samples_from)} to {format_count(segment.samples_to)}",
        format_duration(segment.seconds),
        f"{segment.gpu_hours:,.2f}",
        format_duration(segment.queue_seconds),
        format_duration(segment.startup_seconds),
        lost if segment.lost_samples else "",
        "; ".join(part for part in (segment.detail, suspects) if part),
    ]


def _nodes(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - _NODES_SHOWN} more" if len(nodes) > _NODES_SHOWN else ""
    return ", ".join(nodes[:_NODES_SHOWN]) + more
