"""`flipscale compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.cli.evaluation_sets import SetOptions, chosen_sets, with_root
from flipscale.cli.options import EncodedBatch

if TYPE_CHECKING:
    from flipscale.reporting.comparison.results import Comparison


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SetOptions):
    """The arguments and options of `flipscale compare`."""

    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Runs, checkpoints, OpenCLIP directories; local-dir:PATH, NAME:TAG, NAME:FILE of OpenCLIP.",
            show_default=False,
        ),
    ]
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write.")] = Path("reports/compare")
    batch_size: EncodedBatch = 64


def compare(options: CompareOptions) -> None:
    """Write a page that compares models with each other and with what was published."""
    from rich.console import Console
    from rich.markup import escape

    from flipscale.cli.console import printable
    from flipscale.cli.page_files import write_page
    from flipscale.distributed.placement import read_placement
    from flipscale.distributed.world import join_world, leave_world
    from flipscale.files import check_writable
    from flipscale.reporting.comparison.compare import compare as compare_models
    from flipscale.reporting.comparison.model_names import resolve_models, sets_of
    from flipscale.reporting.comparison.page import compare_document, compare_page

    chosen = chosen_sets(options)
    models = resolve_models(options.models)
    sets = with_root(chosen or sets_of(models), options)
    out = options.out.resolve()

    world = join_world(read_placement())
    try:
        world.lead(lambda: check_writable(out / "compare.html"))
        with Console(stderr=True, quiet=not world.leads).status("comparing") as spinner:
            comparison = compare_models(
                models, sets, options.batch_size, world, lambda what: spinner.update(escape(printable(what)))
            )
    finally:
        leave_world()

    if world.leads:
        _print_scores(comparison)
        write_page(out, "compare", compare_page(comparison), compare_document(comparison))


def _print_scores(comparison: Comparison) -> None:
    from flipscale.cli.console import print_table
    from flipscale.formatting import format_percent

    rows = [
        [
            result.model.label,
            *(format_percent(result.scores[metric].value) for metric in comparison.metrics),
        ]
        for result in comparison.results
    ]
    print_table(["model", *(metric.name for metric in comparison.metrics)], rows)
