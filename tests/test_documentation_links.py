"""Every link in README, docs and the other pages leads to a file and a heading that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "jobs/README.md", ROOT / "slurm/dev/README.md"]
)
_ELSEWHERE = re.compile(r"[a-z]+:")


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    return tuple(MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")))


def inline(page: Path) -> Iterator[tuple[Token, int]]:
    """Yield the words, links and pictures of a page with their lines; code has none of these."""
    for block in tokens(page):
        for token in block.children or ():
            yield token, (block.map or [0])[0] + 1


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors that a page's headings get both where Markdown is shown and from mkdocs.

    The two treat several hyphens and repeated headings differently: no link may rest on these.
    """
    slugs: set[str] = set()
    blocks = tokens(page)
    for heading, content in pairwise(blocks):
        if heading.type == "heading_open":
            words = "".join(child.content for child in content.children or ())
            slugs.add(re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-"))
    return frozenset(slug for slug in slugs if "--" not in slug)


def problems(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere."""
    broken: list[str] = []
    for token, line in inline(page):
        target = token.attrs.get("href") or token.attrs.get("src")
        if not isinstance(target, str) or _ELSEWHERE.match(target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (page.parent / name).resolve() if name else page
        if file.is_dir():
            file /= "README.md"
        if not file.is_file() or not file.is_relative_to(ROOT):
            broken.append(f"{page.relative_to(ROOT)}:{line}: there is no file {target}")
        elif anchor and anchor not in anchors(file):
            broken.append(f"{page.relative_to(ROOT)}:{line}: there is no heading {target}")
    return broken


def test_every_link_leads_to_a_file_and_a_heading():
    assert len(PAGES) > 20
    assert [problem for page in PAGES for problem in problems(page)] == []


def test_links_in_messages_and_docstrings_lead_to_pages():
    """Descriptions of keys and messages name pages of docs/ as they are in the repository."""
    broken: list[str] = []
    for path in sorted(ROOT.glob("flipscale/**/*.py")):
        for name, anchor in re.findall(r"\b(docs/\w+\.md)(?:#([\w-]+))?", path.read_text(encoding="utf-8")):
            page = ROOT / name
            if not page.is_file() or (anchor and anchor not in anchors(page)):
                broken.append(f"{path.relative_to(ROOT)}: {name}#{anchor}")
    assert broken == []


def test_every_fence_is_closed():
    """A fence that ends behind other text leaves the rest of its page as code."""
    for page in PAGES:
        fences = [token for token in tokens(page) if token.type == "fence"]
        assert [token.map for token in fences if "\n## " in token.content] == [], page


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](missing.md)", "there is no file missing.md"),
        ("[a](#nothing)", "there is no heading #nothing"),
        ("![a](images/missing.png)", "there is no file"),
        ("[a](#one-two)\n\n## One, `two`", None),
        ("`[a](missing.md)` and\n\n```\n[a](missing.md)\n```", None),
        ("[a](https://example.org/missing)", None),
    ],
)
def test_broken_link_is_found(
    text: str, problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    found = problems(tmp_path / "page.md")
    assert ([problem is not None] if found else []) == ([True] if problem else [])
    assert problem is None or problem in found[0]
