"""Errors with causes outside flipscale's own code; the command line prints them without a traceback."""


class UserError(Exception):
    """The user's input is wrong: one sentence that says what, where, and how to mend (exit code 2)."""


class RunError(Exception):
    """The run cannot go on for a reason that is not its input: a full disk, say (exit code 1).

    `kind` is the reason in the ledger, `suspects` are the nodes that are to blame.
    """

    def __init__(self, message: str, kind: str = "code", suspects: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.suspects = suspects


class StoppedEarly(Exception):
    """The run stopped with work left and wants to be started again by the same command (exit code 75).

    `reason` is that of the ledger: stopped (by a person), preempted, timeout, cancelled, data, ...;
    `agreed` says that all processes stop together, after the same step.
    """

    def __init__(self, message: str, reason: str = "stopped", *, agreed: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.agreed = agreed
