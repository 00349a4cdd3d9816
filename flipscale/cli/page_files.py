"""The three files of a page, for `flipscale report` and `flipscale compare`."""

from __future__ import annotations

from pathlib import Path

from flipscale.errors import UserError
from flipscale.files import write_durably
from flipscale.reporting.page.blocks import Page
from flipscale.reporting.page.html_renderer import to_html
from flipscale.reporting.page.json_renderer import to_json
from flipscale.reporting.page.markdown_renderer import to_markdown
from flipscale.terminal import say


def write_page(directory: Path, name: str, page: Page, document: dict[str, object]) -> None:
    """Write a page as HTML and Markdown, and its document as JSON; print the path of the HTML.

    Args:
        directory: Directory of the files; exists.
        name: Name of the files, without an ending.
        page: The page.
        document: The figures of the page.

    Raises:
        UserError: If the directory cannot be written.
    """
    contents = {"html": to_html(page), "md": to_markdown(page), "json": to_json(document)}
    for ending, content in contents.items():
        try:
            write_durably(directory / f"{name}.{ending}", content)
        except OSError as error:
            raise UserError(f"{directory} cannot be written ({error.strerror}); give another --out") from None

    say(str(directory / f"{name}.html"))
