"""Find wording that docs/style.md rules out, in docstrings, comments, messages, pages and test names.

    python tools/lint/prose.py [PATH...]

Without paths, it reads every tracked Python file, page and YAML file. Exit code 1 if it finds anything.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_COUNTED = (
    r"bytes?|samples?|images?|lines?|tokens?|shards?|files?|steps?|GPUs?|processes|process|seconds?|minutes?|"
    r"hours?|one|once|twice|times|names?|tests?|records?|cores?|workers?|epochs?|nodes?|options?"
)
_UNITS = (
    r"second|minute|hour|day|week|sample|image|line|token|shard|file|step|GPU|process|core|worker|epoch|node|"
    r"rank|lane|segment|batch|class|block|layer|phase|run|job|window|chunk|message|command|template|caption"
)
RULES: tuple[tuple[str, str], ...] = (
    (r"\b(go|goes|going|went|gone) on\b", "continue, resume"),
    (r"\bmend(s|ed|ing)?\b", "fix"),
    (r"\b(lie|lies|lay|lying)\b", "is, is stored"),
    (rf"\b({_COUNTED}) an? ({_UNITS})\b", "per"),
    (r"\balone\b", "only, by itself"),
    (r"\banew\b", "again"),
    (r"\bfor good\b", "permanently"),
    (r"\bbeside\b", "next to, compared with, in addition to"),
    (r"\b(tell|tells|told)\b", "say, report"),
    (
        r"(?<!there )\b(is|are|was|were) no\b(?! (longer|more|less|fewer|larger|smaller|later|earlier)\b)",
        "is not a, has no",
    ),
    (r"\bwhere (there (is|are)|it (is|has|does|was)|they (are|have|do)|none|nothing|nobody)\b", "if"),
    (r"\b(None|none|nothing|False|True|UserError|RunError) where\b", "if"),
)
_RULES = tuple((re.compile(pattern, re.IGNORECASE), advice) for pattern, advice in RULES)
_NAME_RULES = re.compile(
    r"^def (test_\w*("
    r"_is_no_|_are_no_|_told|_tells_|_mend|_goes_on|_go_on|_lies_|_lie_|_for_good|_anew|_beside_"
    r")\w*)"
)
_KEYS = {'"mend"', '"beside"'}
"""Strings that are data: a key of `flipscale doctor --json`, and a word of the rendered captions."""
_SUFFIXES = (".py", ".md", ".yaml")
_STRINGS = {tokenize.STRING, tokenize.COMMENT} | {
    getattr(tokenize, name) for name in ("FSTRING_MIDDLE",) if hasattr(tokenize, name)
}


class Hit(NamedTuple):
    """One place that breaks a rule."""

    path: Path
    line: int
    words: str
    advice: str


def hits(path: Path) -> Iterator[Hit]:
    """Yield what one file has of the word list, in the order of its lines."""
    text = path.read_text(encoding="utf-8")
    prose = _python_prose(text) if path.suffix == ".py" else _page_prose(text)
    for first, words in prose:
        # A phrase may be broken over two lines: search with every white space as one blank.
        for rule, advice in _RULES:
            for match in rule.finditer(re.sub(r"\s", " ", words)):
                yield Hit(path, first + words[: match.start()].count("\n"), match.group(), advice)

    if path.suffix == ".py":
        for number, line in enumerate(text.splitlines(), 1):
            if match := _NAME_RULES.match(line.lstrip()):
                yield Hit(path, number, match.group(1), "docs/style.md, names")


def _python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each string and comment."""
    block: list[str] = []
    start = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if not block:
                start = token.start[0]
            block.append(token.string.lstrip("# "))
            continue
        if token.type in (tokenize.NL, tokenize.NEWLINE) and block:
            continue
        if block:
            yield start, "\n".join(block)
            block = []
        if token.type in _STRINGS and token.string not in _KEYS:
            yield token.start[0], token.string
    if block:
        yield start, "\n".join(block)


def _page_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the text of a page, without its code."""
    fenced = False
    lines: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
            line = ""
        lines.append("" if fenced else re.sub(r"`[^`]*`", "``", line))
    yield 1, "\n".join(lines)


def tracked() -> list[Path]:
    """Return the files of the repository that hold prose."""
    listing = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True)
    left_out = {"docs/style.md", "tools/lint/prose.py"}
    names = [name for name in listing.stdout.splitlines() if name not in left_out]
    return [Path(name) for name in names if name.endswith(_SUFFIXES)]


def main(arguments: list[str]) -> int:
    """Print every hit; return the exit code."""
    paths: list[Path] = []
    for argument in map(Path, arguments):
        inside = sorted(argument.rglob("*")) if argument.is_dir() else [argument]
        paths += [path for path in inside if path.suffix in _SUFFIXES]
    found = [hit for path in (paths or tracked()) for hit in hits(path)]
    for hit in found:
        print(f"{hit.path}:{hit.line}: {hit.words!r}: {hit.advice}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
