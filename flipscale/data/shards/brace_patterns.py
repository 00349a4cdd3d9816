"""The size of a brace pattern, known before it is expanded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from flipscale.errors import UserError
from flipscale.formatting import format_value

MOST_PATHS = 1_000_000
"""Paths of one pattern; LAION-5B has 231,350 shards."""

_MOST_CHARACTERS = 2**28  # of all paths of one pattern together
_DEEPEST = 16  # braces within braces
_NUMBERS = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?(\d{1,18}))?")
_LONG_NUMBER = re.compile(r"\d{19}")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")


@dataclass
class _Size:
    """The texts that a part of a pattern stands for: how many, and their characters altogether."""

    texts: int
    characters: int

    def __add__(self, other: _Size) -> _Size:
        """Return the size of a choice between two parts."""
        return _Size(self.texts + other.texts, self.characters + other.characters)

    def __mul__(self, other: _Size) -> _Size:
        """Return the size of one part after the other."""
        characters = self.characters * other.texts + other.characters * self.texts
        return _Size(self.texts * other.texts, characters)


@dataclass
class _Open:
    """A brace that is not closed yet: where it began, its choices so far, and the one under way."""

    start: int
    chosen: _Size = field(default_factory=lambda: _Size(0, 0))
    current: _Size = field(default_factory=lambda: _Size(1, 0))
    choices: int = 1


def check_size(patterns: Sequence[str]) -> None:
    """Check that brace patterns can be expanded: a short one can stand for 10^12 paths.

    Args:
        patterns: Patterns as braceexpand takes them. Whether their braces are balanced is not checked.

    Raises:
        UserError: If they stand for more than MOST_PATHS paths or for very long ones, or nest too deeply.
    """
    total = _Size(0, 0)
    for pattern in patterns:
        total += _size(pattern)
        if total.texts > MOST_PATHS or total.characters > _MOST_CHARACTERS:
            raise UserError(
                f"the shard pattern {format_value(pattern)} stands for more than {MOST_PATHS:,} paths, or "
                "for very long ones; correct its ranges"
            )


def _size(pattern: str) -> _Size:
    opened = [_Open(0)]
    stray = 0  # closing braces that nothing opened; as many opening ones stand for themselves then
    escaped = False
    for place, sign in enumerate(pattern):
        top = opened[-1]
        if escaped or sign not in "{,}" or (sign in ",}" and len(opened) == 1) or (sign == "{" and stray):
            if not escaped:
                stray += (sign == "}") - (sign == "{")
            escaped = sign == "\\" and not escaped
            top.current.characters += top.current.texts
        elif sign == "{":
            opened.append(_Open(place + 1))
        elif sign == ",":
            top.chosen += top.current
            top.current = _Size(1, 0)
            top.choices += 1
        else:
            opened.pop()
            opened[-1].current *= _closed(top, pattern[top.start : place])

        if len(opened) > _DEEPEST:
            raise UserError(
                f"the shard pattern {format_value(pattern)} nests more than {_DEEPEST} braces; write it flat"
            )

    return opened[0].current


def _closed(brace: _Open, text: str) -> _Size:
    """Return the size of what is between two braces."""
    if brace.choices > 1:
        return brace.chosen + brace.current

    numbers = _NUMBERS.fullmatch(text)
    if numbers is not None:
        step = int(numbers[3] or 1) or 1
        count = abs(int(numbers[2]) - int(numbers[1])) // step + 1
        return _Size(count, count * max(len(numbers[1]), len(numbers[2])))
    if _LONG_NUMBER.search(text) and ".." in text:
        return _Size(MOST_PATHS + 1, 0)
    if _LETTERS.fullmatch(text):
        return _Size(52, 52)

    # Neither a range nor a choice: the braces stand for themselves.
    return brace.current * _Size(1, 2)
