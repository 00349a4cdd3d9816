"""Errors with causes outside flipscale's own code; the command line prints them without a traceback."""

from typing import Literal

Reason = Literal[
    "done",  # the budget is spent
    "stopped",  # by a person
    "cancelled",  # by scancel
    "preempted",
    "timeout",  # the job's time limit
    "killed",  # it left no message
    "lost_process",  # a peer is gone
    "node_failure",
    "hang",  # a step did not end
    "bad_node",  # a node failed its check
    "data",  # a shard could not be read, after retries
    "storage",  # the checkpoints could not be read, after retries
    "code",  # an unexpected exception
    "input",  # a UserError
    "out_of_memory",
    "non_finite",  # the loss stayed infinite or NaN
    "disk",
    "no_progress",  # several starts in a row brought nothing
    "failed_start",  # it ended before its segment began; Slurm's accounting knows of it
    "rolled_back",  # newer checkpoints were damaged
    "superseded",  # a newer start owns the run; this one writes no line
]
"""Why a segment ended, as the ledger says it; see docs/run_directory.md."""


class UserError(Exception):
    """The user's input is wrong: one sentence says what, where, and how to fix it (exit code 2)."""


class RunError(Exception):
    """The run cannot continue for a reason other than its input, such as a full disk (exit code 1).

    Attributes:
        kind: The reason in the ledger.
        suspects: The nodes that probably caused the error.
    """

    def __init__(self, message: str, kind: Reason = "code", suspects: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind: Reason = kind
        self.suspects = suspects


class StoppedEarly(Exception):
    """The run stopped with work left; the same command resumes it (exit code 75).

    Attributes:
        reason: The reason in the ledger: stopped (by a person), preempted, timeout, cancelled, data, ...
        agreed: Whether all processes stop together, after the same step.
    """

    def __init__(self, message: str, reason: Reason = "stopped", *, agreed: bool = False) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.agreed = agreed


def words_of(error: BaseException) -> str:
    """Return what an error says, without the number and the path that an OSError puts around its words.

    A message that names its file would otherwise name it twice: "[Errno 21] Is a directory: 'jobs'".
    """
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
