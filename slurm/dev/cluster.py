"""A real Slurm of 2 to 4 emulated nodes on this host, all of it in one directory."""

from __future__ import annotations

import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import accounting
import authentication
import processes
from daemons import ClusterError, Daemons, clean_environment
from directory import ClusterDirectory
from slurm_conf import Ports, Settings, slurm_conf, user_name

# Nodes refuse a job that starts in the second in which it was requeued ("Job credential revoked"), and
# the job counts as failed then. That is why Slurm holds requeued jobs at all.
_SECONDS_OF_REVOCATION = 2.0
READY_SECONDS = 60
"""The time after which `up` gives up; it usually takes about 1 s, with accounting 3 s."""
PROGRAMS = (
    "munged",
    "munge",
    "slurmctld",
    "slurmd",
    "srun",
    "sbatch",
    "scontrol",
    "sinfo",
    "squeue",
    "scancel",
)
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "sacctmgr")


class DevelopmentCluster:
    """One cluster, identified by its directory; any process of its user may call every method.

    All methods raise ClusterError if the cluster cannot do what it was asked for.

    Args:
        directory: The directory of the cluster; it need not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.files = ClusterDirectory(directory)
        self.directory = self.files.path
        self.configuration = self.files.configuration
        self.daemons = Daemons(
            self.directory,
            clean_environment(
                SLURM_CONF=str(self.configuration),
                MYSQL_UNIX_PORT=str(self.directory / "run/mariadbd.socket"),
            ),
        )

    # Up and down

    def up(self, settings: Settings) -> bool:
        """Start the cluster, after ending the remains of an earlier one.

        Returns:
            False if the cluster already ran with these settings.
        """
        self._check_programs(settings)
        self.files.prepare()

        with self.files.locked():
            if self.files.is_planned:
                if self.runs():
                    if self.files.settings() == settings:
                        return False
                    raise ClusterError(
                        f"The cluster in {self.directory} runs with other options; run `down` first."
                    )
                self._clear()
            try:
                self._start(settings)
            except BaseException:
                self._clear()
                raise
        return True

    def down(self) -> bool:
        """End all jobs and all daemons, and check that the ports are free.

        Returns:
            False if there was nothing to end.
        """
        if not self.files.is_planned:
            return False

        with self.files.locked():
            was_up = bool(self._processes())
            self._clear()
            busy = [str(port) for port in self.files.ports().all() if not processes.is_free(port)]

        if was_up and busy:
            raise ClusterError(f"All processes are gone, but ports {', '.join(busy)} are still in use.")
        return was_up

    def runs(self) -> bool:
        """Return whether every daemon is alive."""
        if not self.files.is_planned:
            return False
        return all(self.daemons.pid(name) is not None for name in self._daemon_names())

    # Faults

    def node_kill(self, node: str, steps: bool) -> None:
        """Send SIGKILL to the slurmd of a node.

        Args:
            node: Name of the node.
            steps: Whether to kill everything that runs on the node, too.
        """
        pid = self.daemons.pid(self._checked(node))
        if pid is None and not steps:
            raise ClusterError(f"The slurmd of {node} does not run; start it with `node-start {node}`.")

        # Stop all before the first dies: the next would report it, and the job would fail of it at once.
        victims = self._processes(owner=node) if steps else [pid]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for victim in victims:
                if victim is not None:
                    processes.send(victim, number)
        processes.wait_until(lambda: self.daemons.pid(node) is None, 5)

    def node_start(self, node: str) -> None:
        """Restart the slurmd of a node; first end what a dead one left, or the next job on it would fail."""
        if self.daemons.pid(self._checked(node)) is not None:
            raise ClusterError(f"The slurmd of {node} already runs.")
        self._end_steps(node)
        self._start_node(node)

    def preempt(self, nodes: int | None, seconds: int) -> str:
        """Submit a job on `high` that takes whole nodes; return its id.

        Args:
            nodes: Number of nodes; None for all.
            seconds: Duration of the job.
        """
        script = f"#!/bin/sh\nexec sleep {seconds}\n"
        options = ("--parsable", "--partition=high", "--exclusive", "--output=/dev/null")
        count = self.files.settings().nodes if nodes is None else nodes
        job = self._query("sbatch", *options, f"--nodes={count}", "--job-name=preempt", stdin=script)
        return job.strip()

    def release(self, job: str) -> None:
        """Let a requeued job start now that would wait 120 s (state PENDING, reason BeginTime)."""
        words = self._query("scontrol", "-o", "show", "job", job).split()
        fields = {key: value for key, _, value in (word.partition("=") for word in words)}
        state = fields["JobState"]
        reason = fields["Reason"]
        if (state, reason) != ("PENDING", "BeginTime"):
            raise ClusterError(f"Job {job} is {state} (reason {reason}), not held until a begin time.")

        time.sleep(_SECONDS_OF_REVOCATION)
        self._query("scontrol", "update", f"jobid={job}", "StartTime=now")

    # State

    def status(self) -> dict[str, Any]:
        """Return the directory, configuration, options, ports, pids of daemons, node states and jobs."""
        if not self.files.is_planned:
            return {"directory": str(self.directory), "running": False}

        state: dict[str, Any] = {
            "directory": str(self.directory),
            "running": self.runs(),
            "SLURM_CONF": str(self.configuration),
            **self.files.plan(),
            "daemons": {name: self.daemons.pid(name) for name in self._daemon_names()},
            "processes": self._processes(),
        }

        if self.daemons.pid("slurmctld") is not None:
            nodes = self._query("sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T")
            state["nodes"] = dict(line.split() for line in nodes.splitlines())
            jobs = self._query("squeue", "--noheader", "--format=%i %P %T %r %j")
            keys = ("job", "partition", "state", "reason", "name")
            lines = [line.split(maxsplit=4) for line in jobs.splitlines()]
            state["jobs"] = [dict(zip(keys, line, strict=True)) for line in lines]
        return state

    def check_exists(self) -> None:
        """Raise ClusterError unless the cluster was started once."""
        if not self.files.is_planned:
            raise ClusterError(f"There is no cluster in {self.directory}; start it with `up`.")

    def check_runs(self) -> None:
        """Raise ClusterError unless the controller is alive."""
        if not self.files.is_planned or self.daemons.pid("slurmctld") is None:
            raise ClusterError(f"The cluster in {self.directory} does not run; start it with `up`.")

    # Start

    def _start(self, settings: Settings) -> None:
        until = time.monotonic() + READY_SECONDS
        ports = Ports.choose(settings.nodes)
        self.files.start_again(settings, ports)

        hardware = self.daemons.client("slurmd", "-C").stdout
        name = self.files.cluster_name()
        self.configuration.write_text(slurm_conf(self.directory, name, settings, ports, hardware))

        # In this order: everything needs munge, and the controller registers with the accounting daemon.
        authentication.start(self.daemons, until)
        if settings.accounting:
            accounting.start(self.daemons, ports, until)
        self.daemons.start("slurmctld", "slurmctld", "-D", "-f", str(self.configuration))
        self.daemons.await_ready("slurmctld", lambda: self._answers("scontrol", "ping"), until)
        for node in settings.node_names:
            self._start_node(node)
        self._run_step(settings, until)

    def _start_node(self, node: str) -> None:
        self.daemons.start(node, "slurmd", "-D", "-f", str(self.configuration), "-N", node)

    def _run_step(self, settings: Settings, until: float) -> None:
        """Run a real step on all nodes: nodes that cannot run one show as idle, too."""
        for node in settings.node_names:
            shown = ("sinfo", "--noheader", f"--nodes={node}", "--partition=low", "--format=%T")
            idle = partial(self._answers, *shown, expected="idle\n")
            self.daemons.await_ready(node, idle, until)

        step = ("srun", f"--nodes={settings.nodes}", "--ntasks-per-node=1", "--job-name=ready", "true")
        done = self.daemons.client(*step, seconds=max(1.0, until - time.monotonic()))
        if done.returncode:
            raise ClusterError(
                f"A step on all nodes failed ({done.stderr.strip()}); see {self.directory}/log."
            )

    # End

    def _clear(self) -> None:
        """End every process, from any state; only the logs of the directory remain useful."""
        settings = self.files.settings()
        nodes = settings.node_names

        # Only with all nodes alive: the jobs of a lost node would stay in the queue.
        if None not in map(self.daemons.pid, ["slurmctld", *nodes]):
            self.daemons.client("scancel", f"--user={user_name()}", seconds=5)
            gone = partial(self._answers, "squeue", "--noheader", expected="")
            processes.wait_until(gone, settings.kill_wait + 5)  # tasks that ignore TERM die after KillWait

        # Steps first: a slurmd with a step would outlive its TERM.
        for node in nodes:
            self._end_steps(node)
        self.daemons.stop(*nodes, "slurmctld")
        for name in (*accounting.DAEMONS, "munged"):
            self.daemons.stop(name, seconds=15)
        processes.end(self._processes(), seconds=0)

    def _end_steps(self, node: str) -> None:
        """KILL what runs on a node, but not its slurmd."""
        steps = {*self._processes(owner=node)} - {self.daemons.pid(node)}
        processes.end(steps, seconds=0)

    # Questions

    def _processes(self, owner: str | None = None) -> list[int]:
        return processes.find(self.directory, self.files.cluster_name(), owner=owner)

    def _daemon_names(self) -> list[str]:
        settings = self.files.settings()
        extra = accounting.DAEMONS if settings.accounting else ()
        return ["munged", *reversed(extra), "slurmctld", *settings.node_names]

    def _checked(self, node: str) -> str:
        names = self.files.settings().node_names
        if node not in names:
            raise ClusterError(f"There is no node {node}; the cluster has {', '.join(names)}.")
        return node

    def _answers(self, *command: str, expected: str | None = None) -> bool:
        done = self.daemons.client(*command, seconds=2)
        return done.returncode == 0 and expected in (None, done.stdout)

    def _query(self, *command: str, stdin: str = "") -> str:
        self.check_runs()
        done = self.daemons.client(*command, stdin=stdin)
        if done.returncode:
            raise ClusterError(f"{command[0]} refused: {done.stderr.strip()}")
        return done.stdout

    def _check_programs(self, settings: Settings) -> None:
        needed = (*PROGRAMS, *(ACCOUNTING_PROGRAMS if settings.accounting else ()))
        path = self.daemons.environment["PATH"]
        missing = [program for program in needed if shutil.which(program, path=path) is None]
        if missing:
            raise ClusterError(f"{', '.join(missing)} not found; run `slurm/dev/cluster install` as root.")
