"""The credentials of web servers: in the address, in ~/.netrc, or a token in an environment variable."""

from __future__ import annotations

import os
import re
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import unquote

from flipscale.addresses import resolve, variable
from flipscale.errors import UserError

TOKEN = "FLIPSCALE_HTTP_TOKEN"
"""The environment variable with the token that servers get; see docs/data.md."""

_NETRC = "NETRC"
"""The environment variable that names another file than ~/.netrc, as it does for curl and requests."""

_LOGIN = re.compile(r"(?<=://)[^/?#]*(?=@)")
_ENDS_LOGIN = re.compile(r"[/?#\\]")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def authorized(path: str) -> tuple[str, dict[str, str]]:
    """Return an address as it is requested, and the header with the credentials of its server.

    These are the user and password of the address, or else those in ~/.netrc, or else the user's token. Only
    the first are sent without encryption to another machine.

    Raises:
        UserError: If the token cannot be a header, or ~/.netrc cannot be read, or a variable is missing.
        urllib3.exceptions.LocationValueError: If the path is not a web address.
    """
    from urllib3.exceptions import LocationValueError
    from urllib3.util import make_headers, parse_url

    address = resolve(path)
    # A password that ends the login early would name another server, which would get the rest of it.
    if any(_ENDS_LOGIN.search(resolve(login)) for login in _LOGIN.findall(path)):
        raise LocationValueError("its login has a character that ends it")
    url = parse_url(address)
    if url.auth is not None:
        basic = make_headers(basic_auth=unquote(url.auth))["authorization"]
        return url._replace(auth=None).url, {"Authorization": basic}
    if url.host is None or (url.scheme != "https" and url.host not in _LOOPBACK):
        return address, {}
    if (login := _login(url.host)) is not None:
        return address, {"Authorization": make_headers(basic_auth=login)["authorization"]}

    token = variable(TOKEN)
    if not (token.isascii() and token.isprintable()):
        raise UserError(f"{TOKEN} has characters that no header can have; set it to a token")
    return address, {"Authorization": f"Bearer {token}"} if token else {}


def refusal(path: str, *, sent: bool) -> UserError:
    """Return the error for a server that answers 401.

    Args:
        path: The shard.
        sent: Whether credentials were sent.
    """
    if sent:
        return UserError(
            f"the server of {path} refuses the credentials that it was sent (HTTP 401); correct them in "
            f"~/.netrc, {TOKEN}, or the variables that the address refers to"
        )
    return UserError(
        f"the server of {path} asks for credentials (HTTP 401); put `machine HOST login USER password "
        f"PASSWORD` into ~/.netrc, or a token into {TOKEN}, and use https"
    )


def _login(host: str) -> str | None:
    """Return USER:PASSWORD of a host in ~/.netrc; None if the file has no entry for it."""
    file = os.environ.get(_NETRC)
    try:
        found = netrc(file).authenticators(host)
    except (FileNotFoundError, RuntimeError):  # no file, or no home directory
        return None
    except (NetrcParseError, OSError, UnicodeDecodeError) as error:
        name = file or Path("~/.netrc")
        raise UserError(
            f"{name} cannot be read ({_reason(error)}); correct it, or set its mode to 600"
        ) from None

    return None if found is None or not found[2] else f"{found[0]}:{found[2]}"


def _reason(error: NetrcParseError | OSError | UnicodeDecodeError) -> str:
    """Return why a file of passwords cannot be read; the parser quotes words, which may be of a password."""
    if isinstance(error, NetrcParseError):
        return f"line {error.lineno} is not of the form `machine HOST login USER password PASSWORD`"
    return (error.strerror or "its disk failed") if isinstance(error, OSError) else "it is not a text"
