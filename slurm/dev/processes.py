"""The processes of one development cluster: which they are, and how they are ended.

The host may run another Slurm, so the name of a program says nothing. A daemon carries a mark in its
environment. A step daemon overwrites its environment with its title, but keeps the log of its node open.
A task has the environment of its submission, to which Slurm adds the names of its cluster and node.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

MARK = "FLIPSCALE_DEV_CLUSTER_DAEMON"  # "DIRECTORY:NAME"


def mark(directory: Path, name: str) -> str:
    """The value of MARK in the environment of the daemon `name` of the cluster in `directory`."""
    return f"{directory}:{name}"


def find(directory: Path, cluster_name: str, owner: str | None = None) -> list[int]:
    """Living processes of a cluster: daemons, step daemons, tasks and what these started.

    `owner` limits them to those of one daemon; with a node's name, to everything that runs on that node.
    This process and its ancestors are never among them (a task may call `cluster down`).
    """
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    owners = {pid: _owner(pid, directory, cluster_name) for pid in pids if is_alive(pid)}
    found = {pid for pid, name in owners.items() if name and owner in (None, name)}
    return sorted(found - _own_line())


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def carries(pid: int, daemon: str) -> bool:
    """Whether the process is alive and is the daemon with this mark, not a later owner of its number."""
    return is_alive(pid) and _environment(pid).get(MARK) == daemon


def end(pids: Iterable[int], seconds: float) -> None:
    """TERM, wait up to `seconds`, then KILL what is left and wait until it is gone."""
    everyone = list(pids)
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        for pid in filter(is_alive, everyone):
            send(pid, number)
        wait_until(lambda: not any(map(is_alive, everyone)), patience)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll every 20 ms; whether the condition came true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def is_free(port: int) -> bool:
    """Whether a server could listen on this TCP port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemons do: TIME_WAIT is free
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError:
            return False
    return True


def _owner(pid: int, directory: Path, cluster_name: str) -> str:
    """The daemon of this cluster that a process is, or the node that it runs on; empty for all others."""
    environment = _environment(pid)
    marked, _, name = environment.get(MARK, "").rpartition(":")
    if marked == str(directory):
        return name
    if environment.get("SLURM_CLUSTER_NAME") == cluster_name:
        return environment.get("SLURMD_NODENAME", "")  # none in a shell that only submits
    try:
        if Path(f"/proc/{pid}/exe").readlink().name == "slurmstepd":
            opened = [file.readlink() for file in Path(f"/proc/{pid}/fd").iterdir()]
            return next((file.stem for file in opened if file.parent == directory / "log"), "")
    except OSError:  # gone, or somebody else's
        pass
    return ""


def _environment(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or somebody else's
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
    return {key: value for key, _, value in pairs}


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _own_line() -> set[int]:
    line, pid = set(), os.getpid()
    while pid > 0:
        line.add(pid)
        pid = int(_stat(pid)[1])
    return line
