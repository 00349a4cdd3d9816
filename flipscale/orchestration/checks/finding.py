"""The result of one check, and how a check that answers in a sentence becomes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from flipscale.addresses import without_secrets
from flipscale.errors import UserError

Level = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The result of one check of a job, a cluster, a machine or a node.

    Attributes:
        name: What was checked, as tables show it.
        level: `error` means that training there fails or is much too slow; `warning` may be intended.
        text: What was measured or is wrong, with its unit.
        fix: What to do about it, or why the check was skipped; empty if `text` says so or nothing is wrong.
        node: The machine, if several were checked; else empty.
    """

    name: str
    level: Level
    text: str
    fix: str = ""
    node: str = ""


class CheckWarning(Exception):
    """A check's sentence about something that may be intended."""


def run_check(name: str, check: Callable[[], str]) -> Finding:
    """Run a check that returns a sentence, or raises CheckWarning or UserError with one."""
    try:
        return Finding(name, "ok", check())
    except CheckWarning as warning:
        return Finding(name, "warning", without_secrets(str(warning)))
    except UserError as error:
        return Finding(name, "error", without_secrets(str(error)))


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Raise the first error of a list of findings.

    Raises:
        UserError: If there is an error; the message also counts the other errors.
    """
    errors = [finding.text for finding in findings if finding.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more; --dry-run shows all)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}")
