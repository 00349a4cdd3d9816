"""The place in flipscale or in a library from which torch is called."""

from __future__ import annotations

import sys

_PACKAGES = ("/flipscale/", "/deepspeed/", "/fairscale/", "/torch/distributed/")
_NOT = "/flipscale/rehearsal/"


def calling_place() -> str:
    """Return file and line of the innermost call outside of torch's core, or nothing if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        for package in _PACKAGES:
            if package in path and _NOT not in path:
                return f" ({package.strip('/')}/{path.rpartition(package)[2]}:{frame.f_lineno})"
        frame = frame.f_back
    return ""
