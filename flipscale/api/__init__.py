"""The public Python surface: the functions and errors that `import flipscale` offers by name.

Each function does what the command of its name does, in this process, and returns what the command prints.
Libraries are imported when a function runs, so that `import flipscale` costs a few milliseconds.
"""

from flipscale.api.jobs import load_job, plan
from flipscale.api.models import evaluate, export, load
from flipscale.api.runs import audit, status, train
from flipscale.errors import RunError, StoppedEarly, UserError

__all__ = [
    "RunError",
    "StoppedEarly",
    "UserError",
    "audit",
    "evaluate",
    "export",
    "load",
    "load_job",
    "plan",
    "status",
    "train",
]
