"""Words in capitals for the values that the program fills into a message."""

from __future__ import annotations

import ast
import re

_EMPTY = {"self", "str", "quote", "Path", "without_secrets", "repr", "format_value"}
_CLEARER = {
    "BLOCK_NAME": "JOB",
    "DESCRIBE_PROBLEM": "REASON",
    "PROBLEMS": "REASON",
    "ERROR": "REASON",
    "ERRORS": "REASON",
    "HOW": "REASON",
    "FORMAT_VALUE": "VALUE",
    "QUOTED": "VALUE",
    "SHOWN": "VALUE",
    "SORTED": "NAME",
    "TUPLE": "SHAPE",
    "WHERE": "PATH",
}
"""Words for values whose own names say little to a reader."""
_REASON = re.compile(r"(str|words_of|reason_of|_reason)\(.*\)|error|reason|damage")
_NUMBER = re.compile(r"(len|min|max|sum|format_bytes|format_minutes|format_gib)\(")


def placeholder(node: ast.expr) -> str:
    """Return the word in capitals for a value that the program fills in."""
    source = ast.unparse(node)
    if "strerror" in source or _REASON.fullmatch(source):
        return "REASON"
    if _NUMBER.match(source):
        return "N"
    if source.startswith("''.join("):
        return ""
    if ".join(" in source:
        return "NAMES"
    names = [part for part in re.findall(r"[A-Za-z_]+", source) if part not in _EMPTY]
    chosen = names[-1] if names and isinstance(node, (ast.Attribute, ast.Name)) else (names or ["value"])[0]
    if chosen == "path" and isinstance(node, ast.Attribute) and len(names) > 1:
        chosen = names[-2]
    word = chosen.strip("_").upper() or "VALUE"
    return _CLEARER.get(word, word)
