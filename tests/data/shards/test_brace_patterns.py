"""The size of brace patterns: equal to what braceexpand makes of them, and bounded."""

from __future__ import annotations

import time

import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st
from support.time_limits import time_limit

from flipscale.data.shards import brace_patterns
from flipscale.data.shards.brace_patterns import MOST_PATHS, check_size
from flipscale.data.shards.index import expand_shards
from flipscale.errors import UserError

PIECES = st.sampled_from(["a", "{", "}", ",", "..", "{0..7}", "{003..9..2}", "{a..c}", "\\", "{x,yy}", "1"])


@given(st.lists(PIECES, max_size=9).map("".join))
def test_size_is_never_below_what_braceexpand_makes(pattern: str):
    try:
        texts = list(braceexpand(pattern))
    except ValueError:  # unbalanced braces, or an escape at the end
        return
    size = brace_patterns._size(pattern)
    assert size.texts >= len(texts)
    assert size.characters >= sum(map(len, texts))


def test_ranges_and_choices_are_counted_exactly():
    for pattern in (
        "/a/{000..231349}.tar",
        "{a,b{0..9},{c,d}}x",
        "{9..-9..2}",
        "{}{x}",
        "\\{0..9\\}",
        "}{0..3}{",
    ):
        assert brace_patterns._size(pattern).texts == len(list(braceexpand(pattern))), pattern


@pytest.mark.parametrize(
    "pattern",
    [
        "/a/{0..1000000000000}.tar",
        "{0..9}" * 12 + ".tar",
        "{{0..999}{0..999}{0..999},x}",
        "::".join(["{0..999999}.tar"] * 2),
        "{0..99999}" + "x" * 100_000,
        "{" * 2000 + "a,b" + "}" * 2000,
        "{" + "9" * 5000 + ".." + "9" * 5001 + "}",
        "{000000000000000000000000000001..2}",
    ],
    ids=lambda pattern: pattern[:20],
)
def test_pattern_of_too_many_paths_is_refused_at_once(pattern: str):
    began = time.process_time()
    with pytest.raises(UserError, match=r"stands for more than 1,000,000 paths|nests more than 16") as raised:
        expand_shards(pattern)
    assert len(str(raised.value)) < 300
    assert time.process_time() - began < time_limit(5)  # of the processor: the expansion would take hours


def test_the_largest_pattern_is_accepted():
    check_size([f"{{0..{MOST_PATHS - 1}}}.tar"])
