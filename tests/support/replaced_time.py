"""The clock of one module, replaced: other threads of the process keep the real one."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def replace_time(
    monkeypatch: pytest.MonkeyPatch, *modules: ModuleType, **functions: Callable[..., Any]
) -> None:
    """Replace functions of the module `time` as other modules see them.

    Args:
        monkeypatch: Undoes it at the end of the test.
        modules: The modules under test, which import `time` as a whole.
        functions: The new functions by name, such as `monotonic`.
    """
    seen = SimpleNamespace(**{**vars(time), **functions})
    for module in modules:
        assert module.time is time, f"{module.__name__} does not import time as a whole"
        monkeypatch.setattr(module, "time", seen)
