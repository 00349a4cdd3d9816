"""FLIP at scale: masked contrastive language-image training with exact samples-seen budgets."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flipscale.api import (
        RunError,
        StoppedEarly,
        UserError,
        audit,
        evaluate,
        export,
        load,
        load_job,
        plan,
        status,
        train,
    )

__version__ = "0.2.0"

__all__ = [
    "RunError",
    "StoppedEarly",
    "UserError",
    "__version__",
    "audit",
    "evaluate",
    "export",
    "load",
    "load_job",
    "plan",
    "status",
    "train",
]


def __getattr__(name: str) -> object:
    """Return a public name of `flipscale.api`, which is imported when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    from flipscale import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
