"""The secrets in an address or a command: passwords, signatures and tokens, by their names and looks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from flipscale.addresses.references import REFERENCE

COMMAND = "pipe:"
"""The beginning of a shard that is the output of a command."""

_USER = re.compile(r"(?<=://)[^\s/?#'\"]*(?=@)")
_BEGINNING = r"[?#&]|;(?=[^\s;=]+=)"  # of a parameter; a semicolon may also be part of a path
_PARAMETERS = re.compile(rf"(?:{_BEGINNING})+([^\s?#&;'\"]+)")

# Names of parameters, options, headers, variables. Their length is bounded: else a long word takes minutes.
_SECRET_NAME = (
    r"(?:[\w.-]{0,80}[-_.])?(?:sig|signature|\w{0,40}token|bearer|sas|\w{0,40}auth|authorization|credentials?|"
    r"\w{0,40}password|passwd|pwd|\w{0,40}secret|policy|jwt|hdn\w{1,40}|rlkey|code|key|"
    r"\w{0,40}(?:api|access|account|secret)[-_]?key)"
)
_SECRET = re.compile(_SECRET_NAME, re.IGNORECASE)
_SIGNED_WITH = re.compile(
    r"(x-amz|x-goog|response-content)-[a-z-]+|expires|key-pair-id|awsaccesskeyid|googleaccessid",
    re.IGNORECASE,
)
_SIGNED_WITH_AZURE = re.compile(r"s(v|s|rt|p|e|t|pr|ip|r|c?id|koid|ktid|kt|ke|ks|kv|aoid|uoid|dd)")
_VERSION_NAME = re.compile(r"versionid|generation", re.IGNORECASE)
_RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9+/=_~.%-]{20,}")
_LOGIN_OPTIONS = ("-u", "-U", "--user", "--proxy-user")  # of curl, with NAME:PASSWORD
_LOGIN = re.compile(r"(-[uU])[^:\s]+:(.+)", re.DOTALL)  # the same in one word
_COOKIE_OPTIONS = ("-b", "--cookie")  # of curl, with NAME=VALUE; without =, a file
_VARIABLE = re.compile(r"(?!key$|code$|policy$)[A-Za-z_]\w*")  # `awk -v code=1` sets no secret
_HEADER = re.compile(r"([\w-]+)\s*:\s*(.+)", re.DOTALL)

_ARGUMENTS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(\s(?:--?{_SECRET_NAME}|-u|--user|--proxy-user)[= ]\s*)(?:'[^']*'|\"[^\"]*\"|[^\s'\"]+)",
        rf"(['\"]{_SECRET_NAME}\s*:\s*)[^'\"\n]+",
        rf"(\s{_SECRET_NAME}:)[^\s'\"]+",
        rf"([\s:'\"]{_SECRET_NAME}=)(?:'[^']*'|\"[^\"]*\"|[^\s'\"]+)",
        r"(\s['\"]?-u)[^\s:'\"]+:[^\s'\"]+",
        r"(\s(?:-b|--cookie)[= ]\s*)(?:'[^']*=[^']*'|\"[^\"]*=[^\"]*\"|[^\s'\"=]+=[^\s'\"]+)",
    )
)


def is_address(path: str) -> bool:
    """Return whether a path is an address of remote storage or a command."""
    return "://" in path or path.startswith(COMMAND)


def find_secret(address: str) -> str | None:
    """Return what in an address looks secret, as words for a message; None if nothing does.

    References to variables are not secret. Any other path is not an address, and has no secret.
    """
    if address.startswith(COMMAND):
        return next(_secrets_of_command(address), None)
    if "://" not in address:
        return None
    if _password(address):
        return "a user and password"

    for name, value in _parameters(address):
        if _is_secret(name, value):
            parameter = f"the parameter {name!r}" if name else "a parameter without a name"
            return f"a signature or token ({parameter})"
    return None


def without_signature(path: str) -> str:
    """Return what identifies a shard: its path or address without what expires or differs between users."""
    if path.startswith(COMMAND):
        return COMMAND + shlex.join(map(without_signature, _words(without_arguments(path))))
    if "://" not in path:
        return path

    address = _USER.sub("", path).replace("://@", "://") if _has_login(path) else path
    parameters = list(_parameters(address))
    azure = any(name.lower() == "sig" for name, _ in parameters)
    kept = [
        f"{name}={value}" if name else value
        for name, value in parameters
        if not (
            REFERENCE.search(f"{name}={value}")
            or _is_secret(name, value)
            or _SIGNED_WITH.fullmatch(name)
            or (azure and _SIGNED_WITH_AZURE.fullmatch(name))
        )
    ]
    return "?".join([re.split(_BEGINNING, address, maxsplit=1)[0], *(["&".join(kept)] if kept else [])])


def without_arguments(text: str) -> str:
    """Return a text in which `...` stands for the secret values of options and headers."""
    for pattern in _ARGUMENTS:
        text = pattern.sub(r"\1...", text)
    return text


def _secrets_of_command(command: str) -> Iterator[str]:
    """Yield what looks secret in the words of a command."""
    words = _words(command)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        header = _HEADER.fullmatch(word)
        login = _LOGIN.fullmatch(word)
        if " " in word:  # a command in one word, as of `sh -c`
            yield from _secrets_of_command(word)
        if "://" in word and (secret := find_secret(word)):
            yield secret
        elif option in _LOGIN_OPTIONS and _is_literal((value or following).partition(":")[2]):
            yield f"a user and password (the option {option})"
        elif login and _is_literal(login[2]):
            yield f"a user and password (the option {login[1]})"
        elif option in _COOKIE_OPTIONS and _is_literal((value or following).partition("=")[2]):
            yield f"a secret (the option {option})"
        elif equals and _VARIABLE.fullmatch(option) and _SECRET.fullmatch(option) and _is_literal(value):
            yield f"a secret (the variable {option})"
        elif (
            option.startswith("-")
            and _SECRET.fullmatch(option.lstrip("-"))
            and _is_literal(value or following)
        ):
            yield f"a secret (the option {option})"
        elif header and _SECRET.fullmatch(header[1]) and _is_literal(header[2].rpartition(" ")[2]):
            yield f"a secret (the header {header[1]})"


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command.removeprefix(COMMAND))
    except ValueError:  # refused where it would run
        return command.removeprefix(COMMAND).split()


def _password(address: str) -> bool:
    """Return whether an address has a literal password, or a token as the user of a web server."""
    users: list[str] = _USER.findall(address)
    user, colon, password = "".join(users).partition(":")
    return _is_literal(password) if colon else _has_login(address) and _is_literal(user)


def _has_login(address: str) -> bool:
    """Return whether a name before @ is a login: in abfs://container@account, it is a place."""
    users = _USER.findall(address)
    return any(":" in user for user in users) or (bool(users) and address.startswith("http"))


def _parameters(address: str) -> Iterator[tuple[str, str]]:
    """Yield name and value of each parameter; the name of a bare value is empty."""
    for parameter in _PARAMETERS.findall(address):
        name, equals, value = parameter.partition("=")
        yield (name, value) if equals else ("", parameter)


def _is_secret(name: str, value: str) -> bool:
    if not _is_literal(value) or _VERSION_NAME.fullmatch(name):
        return False
    return bool(_SECRET.fullmatch(name) or _RANDOM.fullmatch(value))


def _is_literal(text: str) -> bool:
    """Return whether a text is more than references to variables."""
    return bool(REFERENCE.sub("", text).strip())
