"""Find and end the processes of one development cluster.

The host may run another Slurm, so the name of a program identifies nothing. A daemon carries a mark in its
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

MARK = "FLIPSCALE_DEV_CLUSTER_DAEMON"
"""The environment variable of a daemon; its value is "DIRECTORY:NAME"."""


def mark(directory: Path, name: str) -> str:
    """Return the value of MARK for the daemon `name` of the cluster in `directory`."""
    return f"{directory}:{name}"


def find(directory: Path, cluster_name: str, owner: str | None = None) -> list[int]:
    """Return the living processes of a cluster: daemons, step daemons, tasks and what these started.

    This process and its ancestors are never among them, because a task may call `cluster down`.

    Args:
        directory: The directory of the cluster.
        cluster_name: The cluster's ClusterName.
        owner: Name of a daemon, to get only its processes; for a node, everything that runs on the node.
    """
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    owners = {pid: _owner(pid, directory, cluster_name) for pid in pids if is_alive(pid)}
    matching = {pid for pid, name in owners.items() if name and owner in (None, name)}
    return sorted(matching - _ancestors())


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def carries(pid: int, daemon: str) -> bool:
    """Return whether the process is alive and has this mark, instead of being a later owner of the pid."""
    return is_alive(pid) and _environment(pid).get(MARK) == daemon


def end(pids: Iterable[int], seconds: float) -> None:
    """Send TERM, wait up to `seconds`, then KILL what is left and wait until it is gone."""
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
    """Poll a condition every 20 ms; return whether it became true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def is_free(port: int) -> bool:
    """Return whether a server could listen on this TCP port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemons do: TIME_WAIT is free
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError:
            return False
    return True


def _owner(pid: int, directory: Path, cluster_name: str) -> str:
    """Return the daemon that a process is, or the node that it runs on; empty if it is of no cluster."""
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
    except OSError:  # gone, or of another user
        pass
    return ""


def _environment(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or of another user
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
    return {key: value for key, _, value in pairs}


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; an empty list if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _ancestors() -> set[int]:
    """Return this process, its parent, and so on."""
    pids: set[int] = set()
    pid = os.getpid()
    while pid > 0:
        pids.add(pid)
        pid = int(_stat(pid)[1])
    return pids
