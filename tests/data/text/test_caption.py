"""A caption is the first 4,096 bytes of a text that shows something."""

from __future__ import annotations

import html
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.shards import tiny_tokenizer

from flipscale.data.quarantine import BadSample, kind
from flipscale.data.text.caption import MOST_BYTES, decode_caption, decode_captions, shortened

BLANK = [
    b" \n\t",
    b"\0\0\0",
    b"\x1b\x07",
    "\u200b\u200d\ufeff".encode(),
    "\u2800\u3164\u00ad".encode(),
    "\ufffd".encode(),
    b"&nbsp;&#8203;",
    b"&amp;nbsp;",
    b"&#0;",
    b"\n" * 10_000_000,
    b" " * MOST_BYTES + b"behind the limit",
]


@pytest.mark.parametrize("data", BLANK, ids=range(len(BLANK)))
def test_captions_that_show_nothing_are_blank(data):
    with pytest.raises(BadSample, match=r"^the caption is blank$"):
        decode_caption(data)


def test_missing_and_undecodable_captions_are_named():
    for data, reason in ((b"", "the caption is missing or empty"), (b"caf\xe9", "the caption is not UTF-8")):
        with pytest.raises(BadSample, match=f"^{reason}$") as caught:
            decode_caption(data)
        assert kind(str(caught.value)) == reason


@given(st.text(min_size=1))
def test_a_caption_with_one_letter_is_usable(text):
    if any(
        unicodedata.category(letter)[0] in "LN" and letter not in "\u115f\u1160\u3164\uffa0"
        for letter in text
    ):
        assert decode_caption(text.encode()) == text


def test_visible_entities_are_not_blank():
    for text in ("&amp;", "&lt;", "AT&T", "&", "&#65;"):
        assert html.unescape(text).strip()
        assert decode_caption(text.encode()) == text


@given(st.text(alphabet="a\u00e9\u4e2d\U0001f600", min_size=1, max_size=20), st.integers(1000, 3000))
def test_a_long_caption_is_cut_between_characters(pattern, characters):
    text = (pattern * characters)[:characters]
    data = text.encode()
    cut = decode_caption(data)
    assert text.startswith(cut)
    assert cut == text if len(data) <= MOST_BYTES else MOST_BYTES - 4 < len(cut.encode()) <= MOST_BYTES
    assert shortened(cut) == cut


def test_bytes_behind_the_limit_must_be_text_too():
    with pytest.raises(BadSample, match="not UTF-8"):
        decode_caption(b"a" * 10_000 + b"\xff")


def test_lines_are_captions_of_their_own():
    assert decode_captions(b"a cat\r\n\n  a dog \n\0\n" + b"x" * 9000) == ["a cat", "a dog", "x" * MOST_BYTES]
    with pytest.raises(BadSample, match="blank"):
        decode_captions(b"\n" * 1_000_000)


@pytest.mark.parametrize(
    "text", ["a" + "\n" * 10_000_000, "a" + "&amp;#" + "1" * 6000 + ";", "a" + "\u0301\u0327" * 10**6]
)
def test_no_caption_keeps_the_tokenizer_busy(text):
    """Cleaning took two minutes for these newlines, and failed for the number of 6,000 digits."""
    tokenizer = tiny_tokenizer()
    short = decode_caption(text.encode())
    assert len(short.encode()) <= MOST_BYTES
    assert tokenizer([short])[0, 0] == tokenizer(["a"])[0, 0]
