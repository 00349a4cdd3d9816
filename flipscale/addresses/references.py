"""References of addresses to environment variables: `${NAME}` is recorded, and its value is used."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from flipscale.errors import UserError
from flipscale.files import read_regular

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

_SHORTEST_HIDDEN = 4  # characters; texts are full of shorter ones
_used: dict[str, str] = {}
"""The values that this process has used, in every spelling, and the reference of each."""


def reference_names(address: str) -> set[str]:
    """Return the names of the variables that an address refers to."""
    return set(REFERENCE.findall(address))


def resolve(address: str) -> str:
    """Return an address, or a word of a command, with the values of the variables that it refers to.

    Raises:
        UserError: If a variable is not set, or its value cannot be part of an address.
    """
    return REFERENCE.sub(_value, address)


def variable(name: str) -> str:
    """Return the value of an environment variable, or else the content of the file that NAME_FILE names.

    The file is read at each use, so that a new signature takes effect while a run is under way. Messages do
    not show the value from now on.

    Returns:
        The value without white space around it; empty if there is neither a variable nor a file.

    Raises:
        UserError: If the file cannot be read.
    """
    value = (os.environ.get(name) or _from_file(name)).strip()
    if len(value) >= _SHORTEST_HIDDEN:
        spellings = {value, quote(value), quote(value, safe=""), unquote(value)}
        _used.update(dict.fromkeys(spellings, f"${{{name}}}"))
    return value


def hidden(text: str) -> str:
    """Return a text with references in the place of all values that this process has used."""
    for value in sorted(_used, key=len, reverse=True):
        text = text.replace(value, _used[value])
    return text


def _value(reference: re.Match[str]) -> str:
    name = reference[1]
    value = variable(name)
    if not value:
        raise UserError(
            f"an address refers to {reference[0]}, but {name} is not set here; export {name}, or set "
            f"{name}_FILE to a file that holds it"
        )
    if not value.isprintable():
        raise UserError(f"the value of {name} has control characters, which no address can have; correct it")
    return value


def _from_file(name: str) -> str:
    file = os.environ.get(f"{name}_FILE")
    if not file:
        return ""

    try:
        return read_regular(Path(file)).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text"
        raise UserError(f"{file}, which {name}_FILE names, cannot be read ({reason}); correct it") from None
