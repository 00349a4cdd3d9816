"""`flipscale report` and `flipscale compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from flipscale.cli.console import print_table
from flipscale.config import Evaluation
from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import join_world, leave_world
from flipscale.errors import UserError
from flipscale.files import check_writable
from flipscale.formatting import format_percent
from flipscale.reporting.comparison.compare import Comparison, compare, sets_of
from flipscale.reporting.comparison.models import enter
from flipscale.reporting.comparison.page import compare_document, compare_page
from flipscale.reporting.page.blocks import Page, json_text, to_html, to_markdown
from flipscale.reporting.run.facts import gather
from flipscale.reporting.run.report import run_document, run_page
from flipscale.runs.directory import existing_run


def report_run(path: Path, out: Path | None) -> None:
    """Write the page of a run; it is only read."""
    run = existing_run(path)
    directory = (out or Path("reports") / run.path.name).resolve()
    if directory == run.path or run.path in directory.parents:
        raise UserError(f"--out {directory} lies in the run, where only training writes; name another place")
    check_writable(directory / "report.html")
    with Console(stderr=True).status("reading the run") as shown:
        material = gather(run, lambda what: shown.update(what))
        page, document = run_page(material), run_document(material)
    _write(directory, "report", page, document)


def compare_models(
    sources: Sequence[str], out: Path, given: Evaluation | None, root: str | None, batch_size: int
) -> None:
    """Write the page of several models, on the sets given or on those of the first run's job.

    Args:
        root: where the data of the sets lie, in place of the sets' own.
    """
    entrants = enter(sources)
    sets = given or sets_of(entrants)
    if root is not None:
        sets = sets.model_copy(update={"root": root})
    world = join_world(read_placement())
    try:
        world.lead(lambda: check_writable(out.resolve() / "compare.html"))
        with Console(stderr=True, quiet=not world.leads).status("comparing") as shown:
            comparison = compare(entrants, sets, batch_size, world, lambda what: shown.update(escape(what)))
    finally:
        leave_world()
    if world.leads:
        _print_scores(comparison)
        _write(out.resolve(), "compare", compare_page(comparison), compare_document(comparison))


def _print_scores(comparison: Comparison) -> None:
    rows = [
        [
            result.contestant.label,
            *(format_percent(result.values[figure].value) for figure in comparison.figures),
        ]
        for result in comparison.results
    ]
    print_table(["model", *(figure.name for figure in comparison.figures)], rows)


def _write(directory: Path, name: str, page: Page, document: dict[str, Any]) -> None:
    contents = {"html": to_html(page), "md": to_markdown(page), "json": json_text(document)}
    for kind, content in contents.items():
        try:
            (directory / f"{name}.{kind}").write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{directory} cannot be written ({error.strerror}); give another --out") from None
    print(directory / f"{name}.html")
