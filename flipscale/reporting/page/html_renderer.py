"""A page as one HTML file that works offline."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from flipscale.reporting.page.blocks import Page
from flipscale.terminal import printable


def to_html(page: Page) -> str:
    """Render a page as one HTML file that requests nothing from the network.

    Every text is escaped. In addition, the content security policy of the page allows only the scripts whose
    digests it lists.

    Args:
        page: The page to render.

    Returns:
        The text of the file: about 5 MB, nearly all of it plotly.
    """
    scripts = [_plotly(), _asset("page.js")]
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)

    environment = Environment(
        loader=PackageLoader("flipscale.reporting"),
        autoescape=True,
        finalize=_plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    return environment.get_template("page.html").render(
        page=page,
        style=_asset("page.css"),
        scripts=scripts,
        script_digests=digests,
        inline_code=_inline_code,
    )


def _plain(value: object) -> object:
    """Write characters that steer a terminal, or reorder text, as escapes."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _inline_code(text: str) -> Markup:
    """Escape a text, and mark up as code what is between backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(printable(text)))))


@cache
def _plotly() -> str:
    """Return the text of plotly's JavaScript library."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _asset(name: str) -> str:
    return (files("flipscale.reporting") / "templates" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """Return the SHA-256 digest of a script as a content security policy writes it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
