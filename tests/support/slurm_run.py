"""A tiny run as a job on a development cluster, with the faults that tests cause."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from support.cluster_handle import Cluster, Job, is_requeued
from support.tiny_run import TinyRun

from flipscale.runs.heartbeat import Heartbeat, read_heartbeats
from flipscale.runs.ledger import LedgerLine, read_ledger
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


def two_nodes(samples: int = 16_000, **changes: Any) -> dict[str, Any]:
    """Return the keys of a job on two nodes with one phase; `changes` are further keys."""
    phase = dict(name="long", samples=samples, mask_ratio=0.5, batch_size=16, base_lr=0.01, warmup=640)
    return {
        "phases": [phase],
        "checkpoint": {"every": ["50 steps"], "keep_last": 2},
        "cluster": {"nodes": 2, "gpus_per_node": 1, "timeout": "60min"},
        **changes,
    }


DISTURBED_SAMPLES = 12_160
SAVES = 50 * 16  # samples between two checkpoints of `two_nodes`

# Every Python of the job imports it from PYTHONPATH. A process that waits before each step leaves the
# processor to other tests, and its own test the time to cause faults.
PACE = """
import os, sys
if "SLURM_PROCID" in os.environ and "train" in sys.argv:
    import time
    from flipscale.training.update import Updater
    update = Updater.update
    def paced(self, stage, batch):
        time.sleep(0.05)
        return update(self, stage, batch)
    Updater.update = paced
"""


def two_phases() -> dict[str, Any]:
    """Return the keys of the job that most faults are tried on: two nodes, two phases, a loader worker."""
    masked = dict(name="masked", samples=12_000, mask_ratio=0.5, batch_size=16, base_lr=0.01, warmup=640)
    unmasked = dict(name="unmasked", samples=160, mask_ratio=0.0, batch_size=16, base_lr=0.001)
    return two_nodes(phases=[masked, unmasked], data={"workers": 1})


@dataclass(frozen=True)
class SlurmRun:
    """A run that is submitted to a cluster with a site file."""

    cluster: Cluster
    run: TinyRun
    site: Path

    @classmethod
    def of(cls, cluster: Cluster, run: TinyRun, **changes: Any) -> SlurmRun:
        """Write a site file for the run; `changes` are keys that differ from SITE."""
        site = run.job.with_suffix(".site.yaml")
        site.write_text(yaml.safe_dump({**SITE, **changes}))
        return cls(cluster, run, site)

    @classmethod
    def paced(cls, cluster: Cluster, run: TinyRun) -> SlurmRun:
        """Write a site file with which the run waits before each step."""
        directory = run.job.with_suffix(".path")
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(PACE)
        return cls.of(cluster, run, environment={**SITE["environment"], "PYTHONPATH": os.fspath(directory)})

    def submit(self, *overrides: str) -> str:
        """Submit the run as a person would; return the job's id."""
        self.cluster.run(*FLIPSCALE, "submit", self.run.job, "--site", self.site, *overrides)
        return self.newest_job()

    def newest_job(self) -> str:
        """Return the id of the job that was submitted last."""
        from flipscale.runs.directory import RunDirectory
        from flipscale.runs.submissions import read_submissions

        return read_submissions(RunDirectory(self.run.output))[-1].job_id

    def wait_for_samples(self, samples: int, timeout: float = 90, since: float = 0.0) -> int:
        """Wait until the metrics have reached a number of samples; return how many there are.

        Args:
            samples: Samples since the start of the run.
            timeout: Seconds.
            since: Lines written before this time do not count; seconds since 1970.
        """

        def seen() -> int:
            metrics = read_metrics(self.run.output)
            return metrics[-1].samples if metrics and metrics[-1].finite("time") >= since else 0

        with self._logs_on_failure():
            return self.cluster.wait_until(seen, lambda count: count >= samples, timeout)

    def more_samples(self, samples: int, timeout: float = 90) -> int:
        """Wait until the current start has trained beyond its checkpoint, when it listens to signals.

        The metrics keep the lines of the start before until the current one begins to train; these lines do
        not count.
        """
        return self.wait_for_samples(self.last_segment_end() + samples, timeout, time.time())

    def last_segment_end(self) -> int:
        """Return the samples at the end of the newest segment in the ledger."""
        ledger = self.ledger()
        return ledger[-1].samples_to if ledger else 0

    def ledger(self) -> list[LedgerLine]:
        """Return the lines of the ledger."""
        return read_ledger(self.run.output)

    def wait_for_segments(self, count: int, timeout: float = 90) -> LedgerLine:
        """Wait until the ledger has a number of lines; return the last of these."""
        lines = self.cluster.wait_until(self.ledger, lambda lines: len(lines) >= count, timeout)
        return lines[count - 1]

    def beats(self) -> list[Heartbeat]:
        """Return the last signs of life by rank."""
        return read_heartbeats(self.run.output)

    def kill(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one process of the job."""
        os.kill(self.beats()[rank].pid, number)

    def process_of(self, rank: int, restarts: str) -> psutil.Process | None:
        """Return the process of a rank from the moment in which it is `flipscale train RUN`, else None.

        Args:
            rank: The rank.
            restarts: Number of the restart: processes of the start before may still be there.
        """
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                trains = process.cmdline()[-3:] == ["flipscale", "train", str(self.run.output)]
                place = process.environ() if trains else {}
                restart = place.get("SLURM_RESTART_COUNT", "0")  # Slurm does not set it in the first start
                if (place.get("SLURM_PROCID"), restart) == (str(rank), restarts):
                    return process
        return None

    def starts_again(self, job: str, restarts: int, timeout: float = 120, minutes: int | None = None) -> None:
        """Wait until a job starts again, without the two minutes for which Slurm holds it.

        A job on a lost node is over only when Slurm has noticed the loss, which can take longer than that.

        Args:
            job: Id of the job.
            restarts: Number of the restart.
            timeout: Seconds.
            minutes: The job's time limit from now on; a start reads it once.
        """

        def requeued(record: Job) -> bool:
            # A job that is being requeued still counts as running for a moment.
            running = any(beat.attempt == f"{job}.{restarts}" for beat in self.beats())
            return int(record["Restarts"]) == restarts and (running or is_requeued(record))

        with self._logs_on_failure():
            record = self.cluster.wait_for(job, requeued, timeout)

        if is_requeued(record):
            if minutes is not None:
                self.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
                self.cluster.wait_for(job, is_requeued)  # after the update Slurm finds out again why it waits
            self.cluster.command("release", job)

    def wait_for_end(self, job: str, state: str = "COMPLETED", timeout: float = 300) -> Job:
        """Wait until a job has ended, and check its state.

        The default timeout leaves time for one start more than expected, for which Slurm holds the job two
        minutes. A run has to survive a start whose processes do not meet. A warning reports such a start.
        """
        with self._logs_on_failure():
            record = self.cluster.wait_for(job, lambda record: record["JobState"] in ENDED, timeout)
            assert record["JobState"] == state, record

        starts = [line.restarts for line in self.ledger() if line.job_id == job]
        if set(range(int(record["Restarts"]) + 1)) - set(starts):
            text = f"of the starts of job {job}, up to {record['Restarts']}, only {starts} came to a segment"
            warnings.warn(f"{text}{self._tails()}", stacklevel=2)
        return record

    @contextmanager
    def _logs_on_failure(self) -> Generator[None]:
        """Add to an AssertionError what the run, every process and the controller wrote last."""
        try:
            yield
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.ledger()}{self._tails()}") from None

    def _tails(self) -> str:
        logs = [*self._logs(), self.cluster.directory / "log/slurmctld.log"]
        return "".join(f"\n== {path.name}\n{path.read_text()[-4000:]}" for path in logs)

    def log(self) -> str:
        """Return the standard error of all processes."""
        return "".join(f"== {path.name}\n{path.read_text()}" for path in self._logs())

    def _logs(self) -> list[Path]:
        return sorted((self.run.output / "logs").glob("*.err"))


def trained_without_gaps(ledger: Sequence[LedgerLine], total: int) -> bool:
    """Return whether the segments follow each other without gap or overlap, up to the whole budget."""
    reached = 0
    for line in ledger:
        if line.samples_from != reached:
            return False
        reached = line.samples_to
    return reached == total


def elapsed_by_accounting(cluster: Cluster, job: str) -> list[float]:
    """Return for how long each start of a job held its nodes, oldest first; only starts that have ended."""
    out = cluster.run("sacct", "-n", "-P", "-X", "-D", "-j", job, "-o", "Start,End,ElapsedRaw").stdout
    rows = [line.split("|") for line in out.split()]
    return [float(seconds) for start, end, seconds in sorted(rows) if "Unknown" not in (start, end)]


def booked_and_elapsed(run: SlurmRun) -> list[tuple[LedgerLine, float]]:
    """Return each line of the ledger, oldest first, with the seconds of that start by Slurm's accounting."""
    lines = sorted(
        (line for line in run.ledger() if line.reason != "rolled_back"), key=lambda line: line.started
    )
    jobs = dict.fromkeys(line.job_id for line in lines)
    elapsed = run.cluster.wait_until(
        lambda: [seconds for job in jobs for seconds in elapsed_by_accounting(run.cluster, job)],
        lambda starts: len(starts) >= len(lines),
        60,
    )
    return list(zip(lines, elapsed, strict=True))
