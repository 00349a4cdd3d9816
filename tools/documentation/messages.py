"""Make the page of every message that ends a command, from the package and from messages.yaml.

    cd tools && python -m documentation.messages [--write]

The command prints the page. With `--write` it replaces docs/messages.md; tests/tools/test_messages.py fails
if the page differs from the code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from documentation.message_templates import ROOT, Template, collect

PAGE = ROOT / "docs" / "messages.md"
SUBJECTS = Path(__file__).with_suffix(".yaml")

_HEAD = """\
---
search:
  boost: 5
---
# Every message

<!-- Made by `make docs-tables` from the code and tools/documentation/messages.yaml. -->

This page has every sentence with which a command ends. Words in capitals stand for what the program fills
in, such as `PATH`, `N` or `REASON`. Each subject begins with the cause; below each message is what to do, in
the program's own words.

**Paste a message into the search of this site.** [Troubleshooting](troubleshooting.md) has the same by
symptom, for what happens most often.

A message ends its command with exit code 2 (the input is wrong), unless another code is named: 75 (stopped
with work left; the same command resumes) or 1 (anything else).
"""
_COMMAND_LINE = """\
## The command line itself

These come from the parser of the command line, in a box under the usage, with exit code 2. Commands of two
words need both: `flipscale data index`. `flipscale -h` lists all commands, and `flipscale COMMAND -h` the
options of one.

#### `Missing argument NAME`

The command needs it; the usage shows the order.

#### `No such option: --NAME`

There is no such option of this command; a near name is suggested.

#### `No such command NAME`

There is no such command; a near name is suggested.

#### `Invalid value for '--NAME': VALUE is not a valid integer`

Likewise for numbers, paths and choices: the option takes another kind of value.

#### `Got unexpected extra argument (NAME)`

There is one argument more than the command takes. Put quotes around a brace pattern, which the shell expands.
"""


class Subject(NamedTuple):
    """One heading of the page."""

    area: str
    title: str
    cause: str
    more: Sequence[str]
    modules: Sequence[str]
    also: Sequence[str] = ()
    """Messages of a library, which the code does not have."""


@cache
def subjects() -> tuple[Subject, ...]:
    """Return the subjects of messages.yaml, in its order."""
    areas = yaml.safe_load(SUBJECTS.read_text(encoding="utf-8"))
    return tuple(Subject(area["area"], **each) for area in areas for each in area["subjects"])


def subject_of(module: str) -> Subject:
    """Return the subject of a module's messages: the one with the longest name that fits.

    Raises:
        LookupError: If no subject names the module or a package around it.
    """
    parts = module.split(".")
    by_module = {name: subject for subject in subjects() for name in subject.modules}
    for length in range(len(parts), 0, -1):
        if subject := by_module.get(".".join(parts[:length])):
            return subject
    raise LookupError(f"no subject of {SUBJECTS} is for flipscale/{module.replace('.', '/')}.py; add one")


@cache
def templates() -> tuple[Template, ...]:
    """Return every sentence of the code, and those of libraries that messages.yaml has."""
    of_libraries = [Template(subject.modules[0], 0, text) for subject in subjects() for text in subject.also]
    return (*collect().templates, *of_libraries)


def page() -> str:
    """Return the whole page, in Markdown."""
    grouped: dict[str, list[Template]] = {subject.title: [] for subject in subjects()}
    for template in templates():
        grouped[subject_of(template.module).title].append(template)

    lines = [_HEAD, _COMMAND_LINE]
    area = ""
    for subject in subjects():
        if subject.area != area:
            area = subject.area
            lines.append(f"## {area}\n")
        lines.append(_section(subject, grouped[subject.title]))
    return "\n".join(lines)


def _section(subject: Subject, members: Sequence[Template]) -> str:
    titles = _titles()
    links = ", ".join(f"[{_title(target, titles)}]({target})" for target in subject.more)
    lines = [f"### {subject.title}\n", f"{subject.cause.strip()} See {links}.\n"]

    fixes: dict[str, list[str]] = {}
    for template in sorted(members, key=lambda template: template.text.lower()):
        problem, fix = split(" ".join(template.text.split()))
        code = f"Exit code {template.code}. " if template.code != "2" else ""
        advice = f"{fix[:1].upper()}{fix[1:]}." if fix else ""
        fixes.setdefault(problem, []).append((code + advice).strip())

    for problem, bodies in fixes.items():
        distinct = [body for body in dict.fromkeys(bodies) if body]
        lines.append(f"#### {as_code(problem)}\n")
        lines += [f"{body}\n" for body in distinct]
    return "\n".join(lines)


def split(text: str) -> tuple[str, str]:
    """Return what a message says is wrong, and what to do: the parts around its first semicolon."""
    depth = 0
    for place, sign in enumerate(text):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth == 0 and text.startswith("; ", place):
            return text[:place], text[place + 2 :]
    return text, ""


def as_code(text: str) -> str:
    """Return a message as Markdown shows it: code, whatever it has of backticks."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _title(target: str, titles: Mapping[str, str]) -> str:
    page_name, _, anchor = target.partition("#")
    words = anchor.replace("-", " ")
    return f"{titles[page_name]}, {words}" if words else titles[page_name]


def _titles() -> dict[str, str]:
    pages = sorted((ROOT / "docs").glob("*.md"))
    return {path.name: path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for path in pages}


def main(arguments: Sequence[str]) -> int:
    """Print or write the page; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the page of every message that ends a command.")
    parser.add_argument("--write", action="store_true", help="Replace docs/messages.md.")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
