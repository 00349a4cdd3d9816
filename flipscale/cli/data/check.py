"""`flipscale data check`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flipscale.cli.data.training_set import CaptionNames, ImageNames, ShardsOrJob, read_training_set
from flipscale.cli.options import AllowPipe, AsJson, Workers
from flipscale.errors import UserError

if TYPE_CHECKING:
    from flipscale.data.checks.scan import Checking, ShardReport


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """The arguments and options of `flipscale data check`."""

    shards: ShardsOrJob
    captions: CaptionNames = None
    images: ImageNames = None
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
    from flipscale.cli.data.check_summary import print_check
    from flipscale.data.checks.report_files import write_report
    from flipscale.data.checks.scan import Checking
    from flipscale.data.checks.summary import summarize
    from flipscale.data.shards.index import expand_shards
    from flipscale.staging import staged_directory

    training_set = read_training_set(options.shards, options.captions, options.allow_pipe, options.images)
    limit = _pixel_limit(options.max_image_pixels) or training_set.max_image_pixels
    paths = expand_shards(training_set.pattern)
    _make_directories(options)

    with nullcontext() if options.fix is None else staged_directory(options.fix) as clean_directory:
        checking = Checking(
            limit, clean_directory, training_set.storage, training_set.captions, training_set.images
        )
        reports = _scan(paths, checking, options)
    summary = summarize(reports)
    document = asdict(summary)
    if options.fix is not None:
        document["clean"] = _clean(reports, options.fix)

    if options.report is not None:
        write_report(reports, document, options.report)
    print_check(summary, document, as_json=options.as_json)


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
        from flipscale.staging import check_new

        check_new(options.fix, "--fix")


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
