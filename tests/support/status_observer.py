"""A thread that compares the status of a run with Slurm's word, again and again."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from support.slurm_run import ENDED

from flipscale.orchestration.status.liveness import SlurmView
from flipscale.orchestration.status.run_status import read_status
from flipscale.slurm import SlurmError, query_queue

AT_WORK = {"starting", "training", "saving", "stopping", "failing", "ending", "silent", "done"}
AT_REST = {"lost", "interrupted", "stopped", "failed", "done"}


def agrees(slurm: str, state: str) -> bool:
    """Return whether a state of a run may be that of a run whose only job has this state in Slurm."""
    if slurm in ("PENDING", "CONFIGURING", "REQUEUED"):
        return state == "queued"
    if slurm == "COMPLETING":
        return state in ("ending", "stopping", "failing", "done")
    return state in (AT_REST if slurm in ENDED else AT_WORK)


class StatusObserver(threading.Thread):
    """Reads the status of a run again and again, and asks Slurm before and after by itself."""

    def __init__(self, run: Path, pause: float = 0.0) -> None:
        """Observe a run.

        Args:
            run: The run directory.
            pause: Seconds between two polls.
        """
        super().__init__(daemon=True)
        self.run_directory = run
        self.polls: Counter[tuple[str, str]] = Counter()
        self.contradictions: list[str] = []
        self.pause = pause
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.pause):
            status = read_status(self.run_directory, SlurmView())
            job = status.jobs[0]
            after = self._state_of(job.job_id)
            self.polls[job.state, status.state] += 1
            # The job may change between the two questions, but the answer fits what status was answered.
            if not agrees(job.state, status.state):
                self.contradictions.append(f"{job.state} (then {after}), but {status.state}: {status.next}")

    def _state_of(self, job_id: str) -> str:
        """Return the state of a job; the busy controller of a test may fail to answer."""
        try:
            return query_queue([job_id])[job_id].state
        except SlurmError:
            return "unknown"

    @property
    def count(self) -> int:
        return sum(self.polls.values())

    def end(self) -> None:
        """End the observation after the poll under way."""
        self.over.set()
        self.join()
