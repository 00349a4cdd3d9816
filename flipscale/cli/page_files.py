"""The three files of a page, for `flipscale report` and `flipscale compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flipscale.errors import UserError
from flipscale.reporting.page.blocks import Page, json_text, to_html, to_markdown


def write_page(directory: Path, name: str, page: Page, document: dict[str, Any]) -> None:
    """Write a page as HTML and Markdown, and its document as JSON; print the path of the HTML.

    Args:
        directory: Directory of the files; exists.
        name: Name of the files, without an ending.
        page: The page.
        document: The figures of the page.

    Raises:
        UserError: If the directory cannot be written.
    """
    contents = {"html": to_html(page), "md": to_markdown(page), "json": json_text(document)}
    for ending, content in contents.items():
        try:
            (directory / f"{name}.{ending}").write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{directory} cannot be written ({error.strerror}); give another --out") from None

    print(directory / f"{name}.html")
