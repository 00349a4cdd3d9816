"""`flipscale data synth`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from flipscale.cli.options import Workers
from flipscale.terminal import say


@dataclass(frozen=True, kw_only=True)
class SynthOptions:
    """The arguments and options of `flipscale data synth`."""

    out: Annotated[Path, typer.Argument(metavar="OUT", help="New directory.", show_default=False)]
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64
    train: Annotated[int, typer.Option(help="Training samples.")] = 20_000
    val: Annotated[int, typer.Option(help="Captioned samples for retrieval.")] = 1_000
    test: Annotated[int, typer.Option(help="Labelled samples for zero-shot classification.")] = 2_000
    shard_size: Annotated[int, typer.Option(help="Samples per shard.")] = 1_000
    seed: int = 0
    workers: Workers = None


def synth(options: SynthOptions) -> None:
    """Make a captioned set of rendered scenes that is worth learning, with held-out colour-shape pairs."""
    from flipscale.cli.console import progress_bar
    from flipscale.cli.data.cores import worker_count
    from flipscale.data.synthetic.dataset import SyntheticOptions, synthesize
    from flipscale.formatting import format_megabytes

    contents = SyntheticOptions(
        image_size=options.size,
        train=options.train,
        val=options.val,
        test=options.test,
        shard_size=options.shard_size,
        seed=options.seed,
    )
    with progress_bar("rendering") as bar:
        summary = synthesize(
            options.out, contents, workers=worker_count(options.workers), progress=bar.advance
        )

    for split in summary.splits:
        say(f"{split.name}: {split.samples} samples in {split.pattern} ({format_megabytes(split.bytes)})")
    say(f"class names: {summary.classnames}, templates: {summary.templates}")
