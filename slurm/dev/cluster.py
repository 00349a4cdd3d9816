"""A real Slurm of 2 to 4 emulated nodes on this host, all of it in one directory."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import accounting
import processes
from daemons import ClusterError, Daemons, clean_environment
from slurm_conf import Ports, Settings, slurm_conf, user_name

# Nodes refuse a job that starts in the second in which it was requeued ("Job credential revoked"), and
# it counts as failed then. That is why Slurm holds requeued jobs at all.
_SECONDS_OF_REVOCATION = 2.0
READY_SECONDS = 60  # give up then; about 1 s is usual, with accounting 3 s
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
PARTS = ("munge", "state", "log", "run", "database")  # and spool-NODE
LONGEST_DIRECTORY = 75  # with "/spool-n1/n1_12345.4294967291" below the 107 bytes of a socket's path


class DevelopmentCluster:
    """One cluster, known by its directory; every method may be called from any process of its user.

    Raises ClusterError where the cluster cannot do what is asked.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.configuration = self.directory / "slurm.conf"
        self._plan = self.directory / "cluster.json"  # settings and ports of the latest `up`
        self.daemons = Daemons(
            self.directory,
            clean_environment(
                SLURM_CONF=str(self.configuration),
                MYSQL_UNIX_PORT=str(self.directory / "run/mariadbd.socket"),
            ),
        )

    # Up and down

    def up(self, settings: Settings) -> bool:
        """Start the cluster, over the remains of an earlier one if need be; False if it already ran so."""
        self._check_programs(settings)
        self._prepare_directory()
        with self._locked():
            if self._plan.exists():
                if self.runs():
                    if self.settings() == settings:
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
        """End all jobs and all daemons, check that the ports are free; False if there was nothing to end."""
        if not self._plan.exists():
            return False
        with self._locked():
            found = bool(processes.find(self.directory, self.name()))
            self._clear()
            taken = [str(port) for port in self._ports().all() if not processes.is_free(port)]
        if found and taken:
            raise ClusterError(f"All processes are gone, but ports {', '.join(taken)} are still taken.")
        return found

    def runs(self) -> bool:
        """Whether every daemon lives."""
        return self._plan.exists() and all(self.daemons.pid(name) is not None for name in self._names())

    # Faults

    def node_kill(self, node: str, steps: bool) -> None:
        """SIGKILL a node's slurmd, with `steps` everything that runs on the node.

        Killed one by one, the first would be reported by the next, and the job would fail of it at once.
        """
        pid = self.daemons.pid(self._known(node))
        if pid is None and not steps:
            raise ClusterError(f"The slurmd of {node} does not run; start it with `node-start {node}`.")
        victims = processes.find(self.directory, self.name(), owner=node) if steps else [pid]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for victim in victims:
                if victim is not None:
                    processes.send(victim, number)
        processes.wait_until(lambda: self.daemons.pid(node) is None, 5)

    def node_start(self, node: str) -> None:
        """Restart a node's slurmd; first end what a dead one left, or the next job on it would fail."""
        if self.daemons.pid(self._known(node)) is not None:
            raise ClusterError(f"The slurmd of {node} already runs.")
        self._end_steps(node)
        self._start_node(node)

    def preempt(self, nodes: int | None, seconds: int) -> str:
        """Submit a job of `seconds` on `high` that takes whole nodes (all by default); return its id."""
        script = f"#!/bin/sh\nexec sleep {seconds}\n"
        options = ("--parsable", "--partition=high", "--exclusive", "--output=/dev/null")
        count = self.settings().nodes if nodes is None else nodes
        job = self._ask("sbatch", *options, f"--nodes={count}", "--job-name=preempt", stdin=script)
        return job.strip()

    def release(self, job: str) -> None:
        """Let a requeued job start now that would wait 120 s (state PENDING, reason BeginTime)."""
        words = self._ask("scontrol", "-o", "show", "job", job).split()
        fields = {key: value for key, _, value in (word.partition("=") for word in words)}
        state, reason = fields["JobState"], fields["Reason"]
        if (state, reason) != ("PENDING", "BeginTime"):
            raise ClusterError(f"Job {job} is {state} (reason {reason}), not held until a begin time.")
        time.sleep(_SECONDS_OF_REVOCATION)
        self._ask("scontrol", "update", f"jobid={job}", "StartTime=now")

    # What there is

    def status(self) -> dict[str, Any]:
        """Directory, configuration, options, ports, the daemons' pids, the nodes' states, jobs by state."""
        if not self._plan.exists():
            return {"directory": str(self.directory), "running": False}
        plan = json.loads(self._plan.read_text())
        state: dict[str, Any] = {
            "directory": str(self.directory),
            "running": self.runs(),
            "SLURM_CONF": str(self.configuration),
            **plan,
            "daemons": {name: self.daemons.pid(name) for name in self._names()},
            "processes": processes.find(self.directory, self.name()),
        }
        if self.daemons.pid("slurmctld") is not None:
            nodes = self._ask("sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T")
            state["nodes"] = dict(line.split() for line in nodes.splitlines())
            jobs = self._ask("squeue", "--noheader", "--format=%i %P %T %r %j")
            keys = ("job", "partition", "state", "reason", "name")
            lines = [line.split(maxsplit=4) for line in jobs.splitlines()]
            state["jobs"] = [dict(zip(keys, line, strict=True)) for line in lines]
        return state

    def check_runs(self) -> None:
        """Raise ClusterError unless there is a controller to talk to."""
        if not self._plan.exists() or self.daemons.pid("slurmctld") is None:
            raise ClusterError(f"The cluster in {self.directory} does not run; start it with `up`.")

    def settings(self) -> Settings:
        """The options of the latest `up`."""
        if not self._plan.exists():
            raise ClusterError(f"There is no cluster in {self.directory}; start one with `up`.")
        saved = json.loads(self._plan.read_text())["settings"]
        return Settings(**{**saved, "conf": tuple(saved["conf"])})

    def name(self) -> str:
        """The ClusterName, by which tasks are known; the controller's port makes it unique on this host."""
        return f"dev{self._ports().controller}"

    # Internals

    def _start(self, settings: Settings) -> None:
        until = time.monotonic() + READY_SECONDS
        self._wipe()
        ports = Ports.choose(settings.nodes)
        draft = self._plan.with_suffix(".draft")
        draft.write_text(json.dumps({"settings": asdict(settings), "ports": asdict(ports)}, indent=1))
        draft.replace(self._plan)
        for part in (*PARTS, *(f"spool-{node}" for node in settings.node_names)):
            (self.directory / part).mkdir(mode=0o700)
        hardware = self.daemons.client("slurmd", "-C").stdout
        self.configuration.write_text(slurm_conf(self.directory, self.name(), settings, ports, hardware))
        self._start_munge(until)
        if settings.accounting:
            accounting.start(self.daemons, ports, until)
        self.daemons.start("slurmctld", "slurmctld", "-D", "-f", str(self.configuration))
        self.daemons.await_ready("slurmctld", lambda: self._answers("scontrol", "ping"), until)
        for node in settings.node_names:
            self._start_node(node)
        self._prove(settings, until)

    def _start_munge(self, until: float) -> None:
        munge = self.directory / "munge"
        key = munge / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self.daemons.start(
            "munged",
            "munged",
            "--foreground",
            "--force",  # the directories above may be private: only this user's processes come here
            f"--key-file={key}",
            f"--socket={munge}/socket",
            f"--pid-file={munge}/pid",
            f"--log-file={self.directory}/log/munged.log",
            f"--seed-file={munge}/seed",
        )
        ask = ("munge", "--no-input", f"--socket={munge}/socket")
        self.daemons.await_ready("munged", lambda: self._answers(*ask), until)

    def _start_node(self, node: str) -> None:
        self.daemons.start(node, "slurmd", "-D", "-f", str(self.configuration), "-N", node)

    def _prove(self, settings: Settings, until: float) -> None:
        """A real step on all nodes: nodes that cannot run one show as idle too."""
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

    def _clear(self) -> None:
        """From any state to one without processes; what is left of the directory is its logs."""
        nodes = self.settings().node_names
        if None not in map(self.daemons.pid, ["slurmctld", *nodes]):  # else jobs of a lost node would stay
            self.daemons.client("scancel", f"--user={user_name()}", seconds=5)
            jobs = ("squeue", "--noheader")  # tasks that ignore TERM are killed after KillWait
            gone = partial(self._answers, *jobs, expected="")
            processes.wait_until(gone, self.settings().kill_wait + 5)
        for node in nodes:  # a slurmd with a step would outlive its TERM
            self._end_steps(node)
        self.daemons.stop(*nodes, "slurmctld")
        for name in (*accounting.DAEMONS, "munged"):
            self.daemons.stop(name, seconds=15)
        processes.end(processes.find(self.directory, self.name()), seconds=0)

    def _end_steps(self, node: str) -> None:
        """KILL what runs on a node, but not its slurmd."""
        steps = {*processes.find(self.directory, self.name(), owner=node)} - {self.daemons.pid(node)}
        processes.end(steps, seconds=0)

    def _wipe(self) -> None:
        """Remove what an earlier `up` wrote; the directory may hold nothing else."""
        for part in (*PARTS, *(spool.name for spool in self.directory.glob("spool-*"))):
            shutil.rmtree(self.directory / part, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one `up` or `down` at a time work on the directory."""
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prepare_directory(self) -> None:
        """Make the directory, or check that it is one of ours."""
        if len(os.fsencode(self.directory)) > LONGEST_DIRECTORY:
            raise ClusterError(
                f"{self.directory} is too long a path for Slurm's sockets; choose a --directory of at most "
                f"{LONGEST_DIRECTORY} bytes."
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            strangers = {path.name for path in self.directory.iterdir()} - {"lock"}
            if strangers and not self._plan.exists():
                raise ClusterError(
                    f"{self.directory} holds other files; choose an empty --directory for the cluster."
                )
            if self.directory.stat().st_uid != os.getuid():
                raise ClusterError(f"{self.directory} belongs to another user; choose another --directory.")
            self.directory.chmod(0o700)
        except OSError as error:
            raise ClusterError(
                f"{self.directory} cannot be used ({error.strerror}); choose another --directory."
            ) from error

    def _names(self) -> list[str]:
        settings = self.settings()
        extra = accounting.DAEMONS if settings.accounting else ()
        return ["munged", *reversed(extra), "slurmctld", *settings.node_names]

    def _ports(self) -> Ports:
        saved = json.loads(self._plan.read_text())["ports"]
        return Ports(**{**saved, "nodes": tuple(saved["nodes"])})

    def _known(self, node: str) -> str:
        if node not in self.settings().node_names:
            raise ClusterError(
                f"There is no node {node}; the cluster has {', '.join(self.settings().node_names)}."
            )
        return node

    def _answers(self, *command: str, expected: str | None = None) -> bool:
        done = self.daemons.client(*command, seconds=2)
        return done.returncode == 0 and expected in (None, done.stdout)

    def _ask(self, *command: str, stdin: str = "") -> str:
        self.check_runs()
        done = self.daemons.client(*command, stdin=stdin)
        if done.returncode:
            raise ClusterError(f"{command[0]} refused: {done.stderr.strip()}")
        return done.stdout

    def _check_programs(self, settings: Settings) -> None:
        wanted = (*PROGRAMS, *(ACCOUNTING_PROGRAMS if settings.accounting else ()))
        path = self.daemons.environment["PATH"]
        missing = [program for program in wanted if shutil.which(program, path=path) is None]
        if missing:
            raise ClusterError(f"{', '.join(missing)} not found; run `slurm/dev/cluster install` as root.")
