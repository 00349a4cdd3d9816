"""A request to stop at a certain step."""

from flipscale.orchestration.segments.stop_requests import REASONS, StopRequests
from flipscale.runs.directory import RunDirectory

NEVER = 10**6
"""More steps than any test trains."""


class StopAt(StopRequests):
    """Asks to stop in a certain step, as a signal would.

    Training ends after this step if it writes something, such as a line of metrics; else after the next step.
    """

    def __init__(self, run: RunDirectory, steps: int) -> None:
        super().__init__(run.stop_file)
        self.left = steps + 1  # training looks once before the first step

    def counts(self) -> list[int]:
        self.left -= 1
        return [int(reason == "sigterm" and self.left <= 0) for reason in REASONS]
