"""A development cluster as tests use it: every method is one command that a person could type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.time_limits import time_limit

SCRIPT = Path(__file__).parents[2] / "slurm/dev/cli.py"
COMMAND_SECONDS = 120  # per command; only a hang takes as long
_SLURM_POLL = 0.5  # seconds between two questions to Slurm, each of which is a program
Job = dict[str, str]
"""The fields of `scontrol show job`, by their names there."""


@dataclass(frozen=True)
class Cluster:
    """A development cluster in `directory`; `environment` makes Slurm's clients use it."""

    directory: Path
    environment: Mapping[str, str]

    @classmethod
    def up(cls, directory: Path, *options: str) -> Cluster:
        """Start a cluster, unless it runs already; an AssertionError has the message of a failure."""
        foreign = ("SLURM", "SBATCH_", "FLIPSCALE_SLURM_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        cluster = cls(directory, {**kept, "SLURM_CONF": str(directory / "slurm.conf")})
        cluster.command("up", *options)
        return cluster

    def down(self) -> None:
        """End the cluster."""
        self.command("down")

    def run(self, *argv: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in the cluster's environment; an AssertionError has the output of a failure."""
        limited: dict[str, Any] = {"timeout": COMMAND_SECONDS, **options}
        done = subprocess.run(
            [str(word) for word in argv],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
            **limited,
        )
        assert not check or done.returncode == 0, (
            f"{done.args}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def command(self, name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of slurm/dev/cluster on this cluster."""
        return self.run(sys.executable, SCRIPT, name, "--directory", self.directory, *arguments, check=check)

    def status(self) -> dict[str, Any]:
        """Return what `status --json` prints."""
        return json.loads(self.command("status", "--json", check=False).stdout)

    def sbatch(self, script: str, *options: str) -> str:
        """Submit the text of a batch script; return the job's id."""
        return self.run("sbatch", "--parsable", *options, input=script).stdout.strip()

    def job(self, job: str) -> Job:
        """Return the record of a job, also of one that has ended."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).stdout.split()
        return {key: value for key, separator, value in (word.partition("=") for word in words) if separator}

    def squeue(self) -> dict[str, str]:
        """Return the states of the jobs that wait or run, by id."""
        lines = self.run("squeue", "--noheader", "--format=%i %T").stdout.splitlines()
        return dict(line.split() for line in lines)

    def node_state(self, node: str) -> str:
        """Return the state that sinfo shows: idle, mixed, allocated, down*, ..."""
        shown = ("sinfo", "--noheader", "--partition=low", f"--nodes={node}", "--format=%T")
        return self.run(*shown).stdout.strip()

    def wait_for(self, job: str, condition: str | Callable[[Job], bool], timeout: float = 30) -> Job:
        """Poll a job and return its record as soon as the condition holds.

        An AssertionError after `timeout` seconds has the last record.

        Args:
            job: Id of the job.
            condition: A state, or a function of the record.
            timeout: Seconds.
        """
        return self.wait_until(
            lambda: self.job(job),
            condition if callable(condition) else lambda record: record["JobState"] == condition,
            timeout,
            interval=_SLURM_POLL,
        )

    @staticmethod
    def wait_until(
        read: Callable[[], Any], condition: Callable[[Any], bool], timeout: float = 30, interval: float = 0.1
    ) -> Any:
        """Poll `read` until the condition holds for its value, and return that value."""
        until = time.monotonic() + time_limit(timeout)
        while not condition(value := read()):
            assert time.monotonic() < until, (
                f"not within {time_limit(timeout):.0f} s; the last value: {value}"
            )
            time.sleep(interval)
        return value

    def preempt(self, nodes: int | None = None, seconds: int = 1) -> str:
        """Submit a job on `high` that takes whole nodes for some seconds; return its id.

        Args:
            nodes: Number of nodes; None for all.
            seconds: Duration of the job.
        """
        count = () if nodes is None else ("--nodes", str(nodes))
        return self.command("preempt", "--seconds", str(seconds), *count).stdout.strip()

    def release(self, job: str, timeout: float = 30) -> None:
        """Wait until Slurm holds a requeued job until its begin time, and let it start now."""
        self.wait_for(job, is_requeued, timeout)
        self.command("release", job)

    def node_kill(self, node: str, steps: bool = False) -> None:
        """Send SIGKILL to the slurmd of a node; with `steps`, also to everything that runs on the node."""
        self.command("node-kill", node, *(("--steps",) if steps else ()))

    def node_start(self, node: str) -> None:
        """Restart the slurmd of a node and wait until the node takes jobs."""
        self.command("node-start", node)
        states = ("idle", "mixed", "allocated")
        self.wait_until(lambda: self.node_state(node), lambda state: state in states, interval=_SLURM_POLL)


def is_requeued(job: Job) -> bool:
    """Return whether a job waits for the begin time that a requeue gave it."""
    return (job["JobState"], job["Reason"]) == ("PENDING", "BeginTime")
