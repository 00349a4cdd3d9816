"""A tiny run as a job on a development cluster, and what tests do to it."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from support.cluster_handle import Cluster, Job, is_requeued
from support.tiny_run import TinyRun

from flipscale.runs.heartbeat import Heartbeat, read_heartbeats
from flipscale.runs.ledger import read_ledger
from flipscale.runs.metrics import read_metrics

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL")
FLIPSCALE = (sys.executable, "-m", "flipscale")
SITE: dict[str, Any] = {
    "name": "test",
    "partition": "low",
    "gpus_per_node": 0,
    "processes_per_node": 1,
    "cpus_per_process": 1,
    "stop_before": "30s",
    "environment": {"OMP_NUM_THREADS": 1},
    "sbatch": {"exclusive": True},
}


@dataclass(frozen=True)
class SlurmRun:
    """`run` on `cluster`, submitted with the site file `site`."""

    cluster: Cluster
    run: TinyRun
    site: Path

    @classmethod
    def of(cls, cluster: Cluster, run: TinyRun, **changes: Any) -> SlurmRun:
        """With the keys of the site changed to `changes`."""
        site = run.job.with_suffix(".site.yaml")
        site.write_text(yaml.safe_dump({**SITE, **changes}))
        return cls(cluster, run, site)

    def submit(self, *overrides: str) -> str:
        """Submit it as a person would; returns the job's id."""
        self.cluster.run(*FLIPSCALE, "submit", self.run.job, "--site", self.site, *overrides)
        return self.newest_job()

    def newest_job(self) -> str:
        from flipscale.orchestration.cluster.submission import read_submissions
        from flipscale.runs.directory import RunDirectory

        return read_submissions(RunDirectory(self.run.output))[-1].job_id

    def wait_for_samples(self, samples: int, timeout: float = 90, since: float = 0.0) -> int:
        """Wait until so many samples are in the metrics; returns how many there are.

        Args:
            since: only what is written from then on counts (seconds since 1970).
        """

        def seen() -> int:
            metrics = read_metrics(self.run.output)
            return metrics[-1]["samples"] if metrics and metrics[-1]["time"] >= since else 0

        with self._told():
            return self.cluster.wait_until(seen, lambda count: count >= samples, timeout)

    def more_samples(self, samples: int, timeout: float = 90) -> int:
        """Wait until the present start has trained so many samples more than the newest checkpoint had when
        it began, so that it listens to signals. What a start before it wrote does not count, though it
        stands in the metrics until the present one begins to train."""
        return self.wait_for_samples(self.last_segment_end() + samples, timeout, time.time())

    def last_segment_end(self) -> int:
        ledger = self.ledger()
        return ledger[-1]["samples_to"] if ledger else 0

    def ledger(self) -> list[dict[str, Any]]:
        return read_ledger(self.run.output)

    def wait_for_segments(self, count: int, timeout: float = 90) -> dict[str, Any]:
        """Wait until the ledger has so many lines; returns the last of them."""
        lines = self.cluster.wait_until(self.ledger, lambda lines: len(lines) >= count, timeout)
        return lines[count - 1]

    def beats(self) -> list[Heartbeat]:
        return read_heartbeats(self.run.output)

    def kill(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one process of the job."""
        os.kill(self.beats()[rank].pid, number)

    def starts_again(self, job: str, restarts: int, timeout: float = 120, minutes: int | None = None) -> None:
        """Wait until the job is started for the `restarts`-th time again, without the wait of two minutes.

        A job on a node that is lost is over only when Slurm has noticed, which can take longer than that.

        Args:
            minutes: its time limit from now on; a start reads it once.
        """

        def requeued(record: Job) -> bool:
            # A job that is being requeued still counts as running for a moment.
            running = any(beat.attempt == f"{job}.{restarts}" for beat in self.beats())
            return int(record["Restarts"]) == restarts and (running or is_requeued(record))

        with self._told():
            record = self.cluster.wait_for(job, requeued, timeout)
        if is_requeued(record):
            if minutes is not None:
                self.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
                self.cluster.wait_for(job, is_requeued)  # the update makes Slurm find out anew why it waits
            self.cluster.command("release", job)

    def wait_for_end(self, job: str, state: str = "COMPLETED", timeout: float = 300) -> Job:
        """Wait until the job has ended, and check that its state is `state`.

        By default so long that it can go through one more start than wanted, for which Slurm holds it two
        minutes: the run has to bear one whose processes do not meet. A warning tells of such a start.
        """
        with self._told():
            record = self.cluster.wait_for(job, lambda seen: seen["JobState"] in ENDED, timeout)
            assert record["JobState"] == state, record
        starts = [line["restarts"] for line in self.ledger() if line["job_id"] == job]
        if set(range(int(record["Restarts"]) + 1)) - set(starts):
            told = f"of the starts of job {job}, up to {record['Restarts']}, only {starts} came to a segment"
            warnings.warn(f"{told}{self._tails()}", stacklevel=2)
        return record

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Add to an AssertionError what the run, every process and the controller wrote last."""
        try:
            yield
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.ledger()}{self._tails()}") from None

    def _tails(self) -> str:
        logs = [*self._logs(), self.cluster.directory / "log/slurmctld.log"]
        return "".join(f"\n== {path.name}\n{path.read_text()[-4000:]}" for path in logs)

    def log(self) -> str:
        """All that the processes wrote."""
        return "".join(f"== {path.name}\n{path.read_text()}" for path in self._logs())

    def _logs(self) -> list[Path]:
        return sorted((self.run.output / "logs").glob("*.err"))


def trained_without_gaps(ledger: Sequence[Mapping[str, Any]], total: int) -> bool:
    """Whether the segments follow each other without a gap or an overlap, up to the whole budget."""
    reached = 0
    for line in ledger:
        if line["samples_from"] != reached:
            return False
        reached = line["samples_to"]
    return reached == total
