"""submitit's local executor in a session of its own: the run outlives the command and its terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from submitit.local.local import LocalExecutor, LocalJob

from flipscale.config import Job, Site
from flipscale.errors import UserError
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.orchestration.cluster.batch_script import environment, python_command, tasks_per_node
from flipscale.processes import send_if

CONTROLLER_LOG = "controller.log"
"""The log of submitit's controller, in the folder of the executor."""
_CONTROLLER = "submitit.local._local"


class DetachedExecutor(LocalExecutor):
    """An executor whose controller, which starts one process per task, is detached from this terminal.

    submitit's own start keeps the terminal's output and Ctrl-C, and hides every GPU that was not requested.

    Args:
        folder: Folder of submitit's files and of the logs.
        allocation: The resources of the job; only its processes and its time limit count here.
        site: This machine as a site.
    """

    def __init__(self, folder: Path, allocation: Allocation, site: Site) -> None:
        super().__init__(folder, max_num_timeout=10**6, python=python_command(site))
        self.update_parameters(
            timeout_min=allocation.time_limit // 60,
            tasks_per_node=tasks_per_node(site, allocation),
            signal_delay_s=site.stop_before,
        )
        self._environment = environment(site, allocation)

    def _submit_command(self, command: str) -> LocalJob[Any]:
        parameters: dict[str, Any] = self.parameters
        tasks = parameters["tasks_per_node"]
        variables = {
            **os.environ,
            **self._environment,
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_NTASKS": str(tasks),
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * parameters["timeout_min"]),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "",
        }

        with open(self.folder / CONTROLLER_LOG, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", _CONTROLLER, str(self.folder)],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return LocalJob(self.folder, str(process.pid), tasks=list(range(tasks)), process=process)


def local_site(site: Site, job: Job) -> Site:
    """Return `site` with the GPUs of this machine and without a partition.

    Raises:
        UserError: If the job needs several nodes.
    """
    import torch

    if job.cluster.nodes > 1:
        raise UserError(
            f"the job asks for {job.cluster.nodes} nodes, and --cluster local has only this machine; add "
            "cluster.nodes=1 to the command"
        )
    return site.model_copy(
        update={"gpus_per_node": torch.cuda.device_count(), "cores_per_node": None, "partition": None}
    )


def controller_lives(pid: str, folder: Path) -> bool:
    """Return whether the controller with this pid still runs; another process may have got its number.

    Args:
        pid: The pid as submissions.jsonl records it.
        folder: The executor's folder, which is part of the controller's command line.
    """
    try:
        command = Path(f"/proc/{int(pid)}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return command[1:4] == [b"-m", _CONTROLLER.encode(), str(folder).encode()]


def end_controller(pid: str, folder: Path) -> bool:
    """Send SIGTERM to the controller with this pid; return whether it runs.

    Args:
        pid: The pid as submissions.jsonl records it.
        folder: The executor's folder.

    Raises:
        PermissionError: If the controller belongs to another user.
    """
    return send_if(lambda: controller_lives(pid, folder), int(pid), signal.SIGTERM)
