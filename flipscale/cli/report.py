"""`flipscale report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flipscale.cli.options import Run
from flipscale.errors import UserError


def report(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write; default: reports/NAME.", show_default=False),
    ] = None,
) -> None:
    """Write a page about a run, as HTML that works offline, Markdown and JSON; the run is only read."""
    from rich.console import Console

    from flipscale.cli.page_files import write_page
    from flipscale.files import check_writable
    from flipscale.reporting.run.facts import gather_facts
    from flipscale.reporting.run.report import run_document, run_page
    from flipscale.runs.directory import existing_run

    existing = existing_run(run)
    directory = (out or Path("reports") / existing.path.name).resolve()
    if directory == existing.path or existing.path in directory.parents:
        raise UserError(
            f"--out {directory} is inside the run, where only training writes; name another place"
        )
    check_writable(directory / "report.html")

    with Console(stderr=True).status("reading the run") as spinner:
        facts = gather_facts(existing, spinner.update)
        page = run_page(facts)
        document = run_document(facts)
    write_page(directory, "report", page, document)
