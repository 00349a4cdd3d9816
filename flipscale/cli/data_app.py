"""`flipscale data ...`: each command thin; what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flipscale.cli.options import AllowPipe, AsJson, Run, Shards, Workers

data_app = typer.Typer(no_args_is_help=True, help="Make, index, check and audit training data.")


@data_app.command()
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New directory.", show_default=False)],
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    train: Annotated[int, typer.Option(help="Training samples.")] = 20_000,
    val: Annotated[int, typer.Option(help="Captioned samples for retrieval.")] = 1_000,
    test: Annotated[int, typer.Option(help="Labelled samples for zero-shot classification.")] = 2_000,
    shard_size: Annotated[int, typer.Option(help="Samples a shard.")] = 1_000,
    seed: int = 0,
    workers: Workers = None,
) -> None:
    """Make a captioned set of rendered scenes that is worth learning, with held-out colour-shape pairs."""
    from flipscale.cli.data import make_synthetic

    make_synthetic(out, size, train, val, test, shard_size, seed, workers)


@data_app.command()
def index(
    shards: Shards,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory for the index.", show_default=False)],
    workers: Workers = None,
    members: Annotated[
        bool,
        typer.Option(help="Keep where every sample lies: 36 bytes a sample, or shards are scanned later."),
    ] = True,
    from_stats: Annotated[
        bool,
        typer.Option("--from-stats", help="Read no tar: take counts from img2dataset's SHARD_stats.json."),
    ] = False,
    allow_pipe: AllowPipe = None,
) -> None:
    """Scan shards once, so that training can read any sample at once; go on where it stopped."""
    from flipscale.cli.data import make_index

    make_index(shards, out, workers, allow_pipe or [], members, from_stats)


@data_app.command()
def check(
    shards: Shards,
    max_image_pixels: Annotated[str, typer.Option(help="Larger images count as unusable.")] = "100M",
    workers: Workers = None,
    allow_pipe: AllowPipe = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write shards of the usable samples there.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write report.json and histograms there.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decode every sample and report sizes, captions, duplicates, and what training could not use."""
    from flipscale.cli.data import check_data

    check_data(shards, max_image_pixels, workers, allow_pipe or [], fix, report, as_json)


@data_app.command()
def vocab(
    shards: Shards,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="vocab.txt to write.", show_default=False)],
    size: Annotated[int, typer.Option(help="Largest number of word pieces.")] = 30_522,
) -> None:
    """Learn a WordPiece vocabulary from the shards' captions."""
    from flipscale.cli.data import make_vocabulary

    make_vocabulary(shards, out, size)


@data_app.command()
def audit(run: Run, as_json: AsJson = False) -> None:
    """Prove from the run directory alone that no sample was skipped or repeated."""
    from flipscale.cli.data import audit_run

    audit_run(run, as_json)
