"""Start the daemons of a development cluster, and recognise them later."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import processes


class ClusterError(Exception):
    """The cluster cannot do what it was asked for; one sentence says what, where, and how to fix it."""


class Daemons:
    """The daemons of the cluster in one directory; DIRECTORY/run/NAME.started records the pid of each.

    All stay in the foreground of a session of their own, so the pid that `start` records is the daemon's.

    Args:
        directory: The directory of the cluster.
        environment: The environment variables of daemons and clients.
    """

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment

    def start(self, name: str, *command: str) -> None:
        """Start one daemon; DIRECTORY/log/NAME.out gets what it prints before it opens its log."""
        mark = processes.mark(self.directory, name)
        environment = {**self.environment, processes.MARK: mark}

        with (self.directory / f"log/{name}.out").open("ab") as out:
            daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.directory,
                env=environment,
                start_new_session=True,
            )

        self._record(name).write_text(f"{daemon.pid}\n")
        # The kernel shows a new program's environment a moment after Popen has returned.
        processes.wait_until(lambda: daemon.poll() is not None or processes.carries(daemon.pid, mark), 5)

    def pid(self, name: str) -> int | None:
        """Return the daemon's pid, or None if it is dead, even if another process has its number now."""
        try:
            pid = int(self._record(name).read_text())
        except (OSError, ValueError):
            return None
        return pid if processes.carries(pid, processes.mark(self.directory, name)) else None

    def stop(self, *names: str, seconds: float = 5) -> None:
        """End the daemons among `names` that are alive: TERM, then KILL after some seconds."""
        pids = [self.pid(name) for name in names]
        processes.end([pid for pid in pids if pid is not None], seconds)

    def await_ready(self, name: str, ready: Callable[[], bool], until: float) -> None:
        """Wait until a daemon answers.

        Args:
            name: Name of the daemon.
            ready: Function that returns whether the daemon answers.
            until: Value of time.monotonic() at which to give up.

        Raises:
            ClusterError: If the daemon ends, or does not answer in time.
        """
        in_time = processes.wait_until(lambda: self.pid(name) is None or ready(), until - time.monotonic())
        if self.pid(name) is None:
            raise ClusterError(f"{name} ended: {self._last_words(name)}; see {self.directory}/log.")
        if not in_time:
            raise ClusterError(f"{name} runs but does not answer in time; see {self.directory}/log.")

    def client(self, *command: str, seconds: float = 10, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a client; its exit code is 124 after `seconds`: clients wait for ever for a dead daemon."""
        try:
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                input=stdin,
                env=self.environment,
                cwd=self.directory,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"no answer in {seconds:.0f} s")

    def _record(self, name: str) -> Path:
        return self.directory / f"run/{name}.started"

    def _last_words(self, name: str) -> str:
        """Return the last lines of a daemon's log, or of its output if it never opened the log."""
        for suffix in ("log", "out"):
            log = self.directory / f"log/{name}.{suffix}"
            if log.exists() and (lines := log.read_text(errors="replace").split("\n")[:-1]):
                return " / ".join(lines[-2:])
        return "it wrote nothing"


def clean_environment(**additions: str) -> dict[str, str]:
    """Return this environment without the variables of another Slurm or job, and with the sbin paths."""
    foreign = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", processes.MARK)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    path = os.pathsep.join([kept.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return {**kept, "PATH": path, **additions}
