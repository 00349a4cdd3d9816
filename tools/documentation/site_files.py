"""A hook of mkdocs: the site also has the files of the repository to which its pages link.

Pages link to each other as they do in the repository, so that the links also work where the Markdown is
read. Files outside of docs/ are in the site under `repository/`, and links to them are rewritten. mkdocs
reports every link to a file that is not in the site; `make docs` then fails.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Dockerfile",
    "jobs/README.md",
    "jobs/quickstart.yaml",
    "slurm/*.yaml",
    "slurm/*.def",
    "slurm/dev/README.md",
    "slurm/dev/site.yaml",
)
"""Patterns of the files outside of docs/ that the site has."""

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)")
_LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
_CANONICAL = re.compile(r"""\brel=["']?(?:canonical|prev|next)""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            place = f"repository/{path.relative_to(ROOT).as_posix()}"
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links lead to the places that files have in the site."""
    assert page.file.abs_src_path is not None
    folder = Path(page.file.abs_src_path).parent
    start = Path(page.file.src_uri).parent

    def rewritten(match: re.Match[str]) -> str:
        target = (folder / match.group()).resolve()
        place = target.relative_to(DOCS) if target.is_relative_to(DOCS) else _outside(target)
        if target.is_dir():
            place /= "README.md"
        return Path(os.path.relpath(place, start)).as_posix()

    # Every second part is code, in which nothing is a link.
    parts = re.split(r"(^```.*?^```$|``.+?``|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else _LINK.sub(rewritten, part) for number, part in enumerate(parts))


def _outside(target: Path) -> Path:
    return Path("repository") / os.path.relpath(target, ROOT)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would load something from another server."""
    loaded = [tag for tag in _LOADED.findall(output) if not _CANONICAL.search(tag)]
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads something from another server: {loaded[0][:200]}")
    return output
