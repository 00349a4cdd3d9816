"""Text for a terminal: whatever comes from data, other machines or files cannot steer it.

Captions, keys, host names and messages of other programs may hold control characters. A terminal obeys them:
it clears lines, changes its title, or shows text in another order.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

# Control characters, line and paragraph separators, halves of surrogate pairs, and what reorders text.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Return a text in which characters that steer a terminal are written as escapes, such as \x1b.

    Args:
        text: Any text.
        keep: Characters that stay as they are.
    """
    return _STEERING.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def say(text: str = "", *, error: bool = False) -> None:
    """Print a text and a line break; characters that the stream cannot encode are written as escapes.

    Args:
        text: Any text.
        error: Whether to print to stderr and not to stdout.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=stream)


def print_json(document: Any) -> None:
    """Print a JSON document to stdout, in ASCII."""
    print(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
