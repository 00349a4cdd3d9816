"""The outcome of one check of a machine or of its software."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Check:
    name: str
    outcome: Outcome
    found: str
    """What was found or measured, with its unit."""
    mend: str = ""
    """What to do about it; why it was skipped."""
    node: str = ""
    """The machine, where several were looked at."""
