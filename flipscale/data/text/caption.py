"""The text of a caption: from the bytes of a member to what the tokenizer gets."""

from __future__ import annotations

import html
import re

from flipscale.data.quarantine import BadSample

MOST_BYTES = 4096
"""The bytes of a caption that are read. Tokenizers need fewer, and cleaning takes up to 20 us per byte."""

# White space, control characters, and what Unicode calls default-ignorable. The list is written out: Python's
# tables grow from version to version, but the same samples must stay usable.
_INVISIBLE = re.compile(
    r"[\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f"
    r"\u205f-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\U0001bca0-\U0001bca3"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff]*"
)


def decode_caption(data: bytes) -> str:
    """Return the text of a caption, of which the first MOST_BYTES bytes count.

    Raises:
        BadSample: If the caption is missing, blank or not UTF-8.
    """
    text = shortened(_decoded(data))
    if is_blank(text):
        raise BadSample("the caption is blank")
    return text


def decode_captions(data: bytes) -> list[str]:
    """Return the texts of several captions, one per line; blank lines are left out.

    Raises:
        BadSample: If the data is missing, blank or not UTF-8.
    """
    lines = (shortened(line).strip() for line in _decoded(data).split("\n"))
    texts = [line for line in lines if line and not is_blank(line)]
    if not texts:
        raise BadSample("the caption is blank")
    return texts


def shortened(text: str) -> str:
    """Return the first MOST_BYTES bytes of a text, without a character that they cut."""
    if len(text) * 4 <= MOST_BYTES:
        return text
    return text.encode("utf-8", "surrogatepass")[:MOST_BYTES].decode("utf-8", "ignore")


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing, also where its HTML entities are resolved."""
    if "&" in text:
        text = html.unescape(html.unescape(text))
    return _INVISIBLE.fullmatch(text) is not None


def _decoded(data: bytes) -> str:
    if not data:
        raise BadSample("the caption is missing or empty")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadSample("the caption is not UTF-8") from None
