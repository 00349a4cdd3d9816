"""The directory of a development cluster: its lock, its configuration, and the plan of the latest `up`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from daemons import ClusterError
from slurm_conf import Ports, Settings

PARTS = ("munge", "state", "log", "run", "database")
"""The folders of the directory, next to spool-NODE."""
LONGEST_DIRECTORY = 75
"""In bytes: with "/spool-n1/n1_10000000.4294967291" it fits into the 107 bytes of a socket's path."""


class ClusterDirectory:
    """The directory in which all of one cluster is.

    Args:
        path: The directory; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.configuration = self.path / "slurm.conf"
        self._plan = self.path / "cluster.json"

    @property
    def is_planned(self) -> bool:
        """Whether `up` has ever got as far as choosing the cluster's ports."""
        return self._plan.exists()

    def prepare(self) -> None:
        """Make the directory, or check that it belongs to a cluster of this user.

        Raises:
            ClusterError: If the directory cannot be used.
        """
        if len(os.fsencode(self.path)) > LONGEST_DIRECTORY:
            raise ClusterError(
                f"{self.path} is too long a path for Slurm's sockets; choose a --directory of at most "
                f"{LONGEST_DIRECTORY} bytes."
            )

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            others = {path.name for path in self.path.iterdir()} - {"lock"}
            if others and not self.is_planned:
                raise ClusterError(
                    f"{self.path} holds other files; choose an empty --directory for the cluster."
                )
            if self.path.stat().st_uid != os.getuid():
                raise ClusterError(f"{self.path} belongs to another user; choose another --directory.")
            self.path.chmod(0o700)
        except OSError as error:
            raise ClusterError(
                f"{self.path} cannot be used ({error.strerror}); choose another --directory."
            ) from error

    @contextmanager
    def locked(self) -> Generator[None]:
        """Let one `up` or `down` at a time work on the directory."""
        with (self.path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def start_again(self, settings: Settings, ports: Ports) -> None:
        """Replace what an earlier `up` wrote by empty folders and a new plan."""
        for part in (*PARTS, *(spool.name for spool in self.path.glob("spool-*"))):
            shutil.rmtree(self.path / part, ignore_errors=True)

        # Written whole or not at all: without its plan a cluster cannot be ended.
        draft = self._plan.with_suffix(".draft")
        draft.write_text(json.dumps({"settings": asdict(settings), "ports": asdict(ports)}, indent=1))
        draft.replace(self._plan)

        for part in (*PARTS, *(f"spool-{node}" for node in settings.node_names)):
            (self.path / part).mkdir(mode=0o700)

    def plan(self) -> dict[str, Any]:
        """Return the settings and the ports of the latest `up`, as JSON has them.

        Raises:
            ClusterError: If there is no cluster in the directory.
        """
        if not self.is_planned:
            raise ClusterError(f"There is no cluster in {self.path}; start one with `up`.")
        return json.loads(self._plan.read_text())

    def settings(self) -> Settings:
        """Return the options of the latest `up`."""
        saved = self.plan()["settings"]
        return Settings(**saved | {"conf": tuple(saved["conf"])})

    def ports(self) -> Ports:
        """Return the ports of the latest `up`."""
        saved = self.plan()["ports"]
        return Ports(**saved | {"nodes": tuple(saved["nodes"])})

    def cluster_name(self) -> str:
        """Return the ClusterName, by which tasks are known; the controller's port makes it unique here."""
        return f"dev{self.ports().controller}"
