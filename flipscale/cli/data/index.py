"""`flipscale data index`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from flipscale.cli.data.training_set import ImageNames, image_extensions
from flipscale.cli.options import AllowPipe, Shards, Workers
from flipscale.terminal import say


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """The arguments and options of `flipscale data index`."""

    shards: Shards
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory for the index.", show_default=False)]
    workers: Workers = None
    members: Annotated[
        bool,
        typer.Option(help="Store where every sample is: 36 bytes per sample; else shards are scanned later."),
    ] = True
    from_stats: Annotated[
        bool,
        typer.Option("--from-stats", help="Read no tar: take counts from img2dataset's SHARD_stats.json."),
    ] = False
    checksums: Annotated[
        bool, typer.Option(help="Read local shards whole for checksums, which training compares.")
    ] = True
    images: ImageNames = None
    allow_pipe: AllowPipe = None


def index(options: IndexOptions) -> None:
    """Scan shards once, so that training can read any sample at once; resume where it stopped."""
    from flipscale.addresses import without_secrets
    from flipscale.cli.console import progress_bar
    from flipscale.cli.data.cores import worker_count
    from flipscale.data.shards.checksumming import can_have_checksums, write_checksums
    from flipscale.data.shards.indexing import build_index
    from flipscale.data.shards.journal import IndexKind
    from flipscale.data.shards.storage import Storage
    from flipscale.runs.secret_values import check_no_secret

    check_no_secret(options.shards)
    workers = worker_count(options.workers)
    with progress_bar("indexing") as bar:
        built = build_index(
            options.shards,
            options.out,
            workers=workers,
            kind=IndexKind(options.members, options.from_stats, image_extensions(options.images)),
            storage=Storage(tuple(options.allow_pipe or ())),
            progress=bar.show,
        )

    if options.checksums and can_have_checksums(built):
        with progress_bar("checksums") as bar:
            write_checksums(built, workers, bar.show)

    fingerprint = built.fingerprint[:16]
    say(f"{options.out}: {built.samples} samples in {len(built.shards)} shards, fingerprint {fingerprint}")
    for damage in built.damaged:
        say(f"warning: {without_secrets(damage.path)} is damaged: {damage.reason}", error=True)
