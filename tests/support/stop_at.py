"""A request to stop at a certain step."""

from flipscale.orchestration.segments.stop_requests import REASONS, StopRequests
from flipscale.runs.directory import RunDirectory


class StopAt(StopRequests):
    """Asks to stop after a number of steps, as a signal would."""

    def __init__(self, run: RunDirectory, steps: int) -> None:
        super().__init__(run.stop_file)
        self.left = steps + 1  # training looks once before the first step

    def counts(self) -> list[int]:
        self.left -= 1
        return [int(reason == "sigterm" and self.left <= 0) for reason in REASONS]
