"""`flipscale report` and `flipscale compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from flipscale.errors import UserError
from flipscale.reporting.page import Page, json_text, to_html, to_markdown
from flipscale.reporting.run_material import gather
from flipscale.reporting.run_report import run_document, run_page
from flipscale.run_directory import existing_run


def report_run(path: Path, out: Path | None) -> None:
    """Write the page of a run; it is only read."""
    run = existing_run(path)
    directory = (out or Path("reports") / run.path.name).resolve()
    if directory == run.path or run.path in directory.parents:
        raise UserError(f"--out {directory} lies in the run, where only training writes; name another place")
    _writable(directory)
    with Console(stderr=True).status("reading the run") as shown:
        material = gather(run, lambda what: shown.update(what))
        page, document = run_page(material), run_document(material)
    _write(directory, "report", page, document)


def _writable(directory: Path) -> None:
    """Make the directory now, rather than find after minutes that it cannot be made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{directory} cannot be made ({error.strerror}); name another directory with --out"
        ) from None


def _write(directory: Path, name: str, page: Page, document: dict[str, Any]) -> None:
    contents = {"html": to_html(page), "md": to_markdown(page), "json": json_text(document)}
    for kind, content in contents.items():
        try:
            (directory / f"{name}.{kind}").write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{directory} cannot be written ({error.strerror}); give another --out") from None
    print(directory / f"{name}.html")
