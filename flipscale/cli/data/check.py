"""`flipscale data check`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flipscale.cli.data.training_set import CaptionNames, ShardsOrJob, read_training_set
from flipscale.cli.options import AllowPipe, AsJson, Workers
from flipscale.errors import UserError

if TYPE_CHECKING:
    from flipscale.data.checks.scan import Checking, ShardReport
    from flipscale.data.checks.summary import DataSummary


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """The arguments and options of `flipscale data check`."""

    shards: ShardsOrJob
    captions: CaptionNames = None
    max_image_pixels: Annotated[
        str | None,
        typer.Option(
            help="Larger images count as unusable. Default: the job's, or 100M.", show_default=False
        ),
    ] = None
    workers: Workers = None
    allow_pipe: AllowPipe = None
    fix: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write shards of the usable samples there.", show_default=False),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write report.json, histograms and the quarantine list there.",
            show_default=False,
        ),
    ] = None
    as_json: AsJson = False


def check(options: CheckOptions) -> None:
    """Decode every sample and report sizes, captions, duplicates, and what training could not use."""
    from flipscale.data.checks.scan import Checking
    from flipscale.data.checks.summary import summarize
    from flipscale.data.quarantine import write_quarantine
    from flipscale.data.shards.index import expand_shards

    training_set = read_training_set(options.shards, options.captions, options.allow_pipe)
    limit = _pixel_limit(options.max_image_pixels) or training_set.max_image_pixels
    paths = expand_shards(training_set.pattern)
    _make_directories(options)

    reports = _scan(paths, Checking(limit, options.fix, training_set.storage, training_set.captions), options)
    summary = summarize(reports)
    document = asdict(summary)
    if options.fix is not None:
        document["clean"] = _clean(reports, options.fix)

    if options.report is not None:
        _draw(reports, document, options.report)
        # What a run over these shards records, for a run whose own list is lost.
        write_quarantine(summary.bad, options.report / "quarantine.jsonl")
    if options.as_json:
        print(json.dumps(document, indent=2))
        return

    _print(summary)
    if options.fix is not None:
        clean = document["clean"]
        print(f"clean: {clean['samples']} samples in {clean['shards']}")
        if clean["left_out"]:
            print(f"left out: {clean['left_out']} usable samples whose key another one in their shard has")


def _pixel_limit(max_image_pixels: str | None) -> int | None:
    from flipscale.config import parse_count

    if max_image_pixels is None:
        return None
    try:
        limit = parse_count(max_image_pixels)
    except ValueError as error:
        raise UserError(f"--max-image-pixels: {error}") from None
    if limit == 0:
        raise UserError("--max-image-pixels is 0, which no image can meet; give for example 100M")

    return limit


def _make_directories(options: CheckOptions) -> None:
    if options.report is not None:
        _make_directory(options.report, "--report")
    if options.fix is not None:
        _make_directory(options.fix, "--fix")
        if any(options.fix.iterdir()):
            raise UserError(f"--fix: {options.fix} is not empty; name a new directory for the clean shards")


def _make_directory(path: Path, option: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: the directory {path} cannot be made: {error.strerror}") from None


def _scan(paths: list[str], checking: Checking, options: CheckOptions) -> list[ShardReport]:
    from flipscale.cli.console import progress_bar
    from flipscale.cli.data.cores import worker_count
    from flipscale.data.checks.scan import check_shards

    reports: list[ShardReport] = []
    with progress_bar("checking") as bar:
        for report in check_shards(paths, checking, worker_count(options.workers)):
            reports.append(report)
            bar.show(len(reports), len(paths))

    return reports


def _clean(reports: list[ShardReport], directory: Path) -> dict[str, Any]:
    return {
        "shards": str(directory / f"{{000000..{len(reports) - 1:06d}}}.tar"),
        "samples": sum(report.written for report in reports),
        "left_out": sum(report.samples - len(report.bad) - report.written for report in reports),
    }


def _draw(reports: list[ShardReport], document: dict[str, Any], directory: Path) -> None:
    from flipscale.data.checks.histograms import draw_histogram
    from flipscale.data.checks.summary import caption_lengths, shorter_sides

    sizes = directory / "image_sizes.png"
    lengths = directory / "caption_lengths.png"
    draw_histogram(shorter_sides(reports), "Shorter side of the images", "pixels", sizes)
    draw_histogram(caption_lengths(reports), "Length of the captions", "words", lengths)
    (directory / "report.json").write_text(json.dumps(document, indent=2) + "\n")


def _print(summary: DataSummary) -> None:
    from flipscale.cli.console import print_table
    from flipscale.data.quarantine import kind
    from flipscale.formatting import format_megabytes

    print(
        f"{summary.samples} samples in {summary.shards} shards: "
        f"{len(summary.bad)} cannot be used ({format_megabytes(summary.bytes)} in all)"
    )
    print("samples with a caption: " + ", ".join(f"{n} in {name}" for name, n in summary.captions.items()))
    print(
        f"shorter side in pixels: {_quantiles(summary.shorter_side_pixels)}; "
        f"words per caption: {_quantiles(summary.caption_words)}"
    )
    print(
        f"come more than once: {summary.duplicate_keys} keys "
        f"({summary.duplicate_keys_within_a_shard} of them within one shard), "
        f"{summary.duplicate_images} images"
    )
    for damage in summary.damaged_shards:
        print(f"{damage.path} is damaged: {damage.reason}")
    if summary.oddities:
        print("worth a look: " + ", ".join(f"{n} {name}" for name, n in summary.oddities.items()))

    if summary.bad:
        # Reversed, so that the first sample of a kind is its example.
        examples = {kind(record.reason): f"{record.key} in {record.path}" for record in reversed(summary.bad)}
        rows = [(reason, str(count), examples[reason]) for reason, count in summary.reasons.items()]
        print_table(("reason", "samples", "for example"), rows)


def _quantiles(quantiles: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in quantiles.items()) or "none"
