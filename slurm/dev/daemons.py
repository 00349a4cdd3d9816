"""Starting the daemons of a development cluster and knowing them again."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import processes


class ClusterError(Exception):
    """The cluster cannot do what was asked: one sentence that says what, where, and how to mend."""


class Daemons:
    """The daemons of the cluster in one directory, each recorded in DIRECTORY/run/NAME.started by its pid.

    All stay in the foreground of a session of their own: what `start` records is the daemon itself.
    """

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment

    def start(self, name: str, *command: str) -> None:
        """Start one daemon; what it prints before it opens its log goes to DIRECTORY/log/NAME.out."""
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
        """The daemon's pid while it lives; the number may have been given away after a kill or a reboot."""
        try:
            pid = int(self._record(name).read_text())
        except (OSError, ValueError):
            return None
        return pid if processes.carries(pid, processes.mark(self.directory, name)) else None

    def stop(self, *names: str, seconds: float = 5) -> None:
        """TERM, wait, KILL the daemons among `names` that live."""
        pids = [self.pid(name) for name in names]
        processes.end([pid for pid in pids if pid is not None], seconds)

    def await_ready(self, name: str, ready: Callable[[], bool], until: float) -> None:
        """Poll until `ready`; raise ClusterError when the daemon ends or time.monotonic() passes `until`."""
        alive = processes.wait_until(lambda: self.pid(name) is None or ready(), until - time.monotonic())
        if self.pid(name) is None:
            raise ClusterError(f"{name} ended: {self._last_words(name)}; see {self.directory}/log.")
        if not alive:
            raise ClusterError(f"{name} runs but does not answer in time; see {self.directory}/log.")

    def client(self, *command: str, seconds: float = 10, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a client; rc 124 after `seconds`, as Slurm's clients wait for ever for a dead daemon."""
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
        """The last lines that a daemon wrote into its log, or on its terminal if it never opened the log."""
        for suffix in ("log", "out"):
            log = self.directory / f"log/{name}.{suffix}"
            if log.exists() and (lines := log.read_text(errors="replace").split("\n")[:-1]):
                return " / ".join(lines[-2:])
        return "it wrote nothing"


def clean_environment(**additions: str) -> dict[str, str]:
    """This environment without what another Slurm or an enclosing job left in it, and with the sbin paths."""
    foreign = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", processes.MARK)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    path = os.pathsep.join([kept.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return {**kept, "PATH": path, **additions}
