"""The files of `flipscale data check --report`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flipscale.data.checks.histograms import draw_histogram
from flipscale.data.checks.scan import ShardReport
from flipscale.data.checks.summary import caption_lengths, shorter_sides
from flipscale.data.quarantine import write_quarantine
from flipscale.files import write_durably


def write_report(reports: Sequence[ShardReport], document: Mapping[str, object], directory: Path) -> None:
    """Write report.json, two histograms, and the quarantine list of a run over these shards.

    Args:
        reports: The reports of all shards, in the order of the index.
        document: The content of report.json.
        directory: Where to write; exists.
    """
    listed = list(reports)
    draw_histogram(
        shorter_sides(listed), "Shorter side of the images", "pixels", directory / "image_sizes.png"
    )
    draw_histogram(
        caption_lengths(listed), "Length of the captions", "words", directory / "caption_lengths.png"
    )
    # For a run whose own list is lost.
    write_quarantine((record for report in listed for record in report.bad), directory / "quarantine.jsonl")
    write_durably(directory / "report.json", json.dumps(document, indent=2) + "\n")
