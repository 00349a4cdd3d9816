"""Addresses as messages, logs and records show them: without signatures, tokens and passwords."""

from __future__ import annotations

import logging
import re

from flipscale.addresses.references import hidden
from flipscale.addresses.secret_parts import COMMAND, without_arguments
from flipscale.terminal import printable

_USER = re.compile(r"(://)[^\s/'\"]*@")
# Parameters may begin at a semicolon, too, which is also a sign of the sentence around an address.
_QUERY = re.compile(r"(://[^\s?#'\"]*?)(?:[?#]|;(?=[^\s'\"=;]+=))[^\s'\"]*")
_QUERY_OF_PATH = re.compile(r"\?[^\s'\"()=]+=[^\s'\"()]*")  # in errors of clients: `with url: /0.tar?sig=1`


def without_secrets(text: str) -> str:
    """Return a text whose addresses have neither a query nor a user and password.

    Values of variables that addresses referred to are replaced by the references, and what follows an option
    or a header such as `--token` in a command by `...`.
    """
    text = hidden(text)
    if COMMAND in text:
        text = without_arguments(text)
    return _QUERY_OF_PATH.sub("", _QUERY.sub(r"\1", _USER.sub(r"\1", text)))


class Formatter(logging.Formatter):
    """A formatter of log lines and tracebacks without secrets of addresses and what steers a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return printable(without_secrets(super().format(record)))
