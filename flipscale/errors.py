"""Errors with causes outside flipscale's own code; the command line prints them without a traceback."""


class UserError(Exception):
    """The user's input is wrong: one sentence says what, where, and how to fix it (exit code 2)."""


class RunError(Exception):
    """The run cannot continue for a reason other than its input, such as a full disk (exit code 1).

    Attributes:
        kind: The reason in the ledger.
        suspects: The nodes that probably caused the error.
    """

    def __init__(self, message: str, kind: str = "code", suspects: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.suspects = suspects


class StoppedEarly(Exception):
    """The run stopped with work left; the same command resumes it (exit code 75).

    Attributes:
        reason: The reason in the ledger: stopped (by a person), preempted, timeout, cancelled, data, ...
        agreed: Whether all processes stop together, after the same step.
    """

    def __init__(self, message: str, reason: str = "stopped", *, agreed: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.agreed = agreed
