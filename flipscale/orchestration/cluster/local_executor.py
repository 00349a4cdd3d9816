"""submitit's local executor, in a session of its own: the run outlives the command and its terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from submitit.local.local import LocalExecutor, LocalJob

from flipscale.config import Job, Site
from flipscale.errors import UserError
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.orchestration.cluster.batch_script import environment, python_command, tasks_per_node

CONTROLLER_LOG = "controller.log"


class DetachedExecutor(LocalExecutor):
    """Starts submitit's controller, which starts one process for each task, away from this terminal.

    submitit's own start keeps the terminal's output and Ctrl-C, and hides every GPU that was not asked for.
    """

    def __init__(self, folder: Path, asked: Allocation, site: Site) -> None:
        super().__init__(folder, max_num_timeout=10**6, python=python_command(site))
        self.update_parameters(
            timeout_min=asked.time_limit // 60,
            tasks_per_node=tasks_per_node(site, asked),
            signal_delay_s=site.stop_before,
        )
        self._environment = environment(site, asked)

    def _submit_command(self, command: str) -> LocalJob[Any]:
        tasks = self.parameters["tasks_per_node"]
        variables = {
            **os.environ,
            **self._environment,
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_NTASKS": str(tasks),
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * self.parameters["timeout_min"]),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(self.parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "",
        }
        with open(self.folder / CONTROLLER_LOG, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "submitit.local._local", str(self.folder)],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return LocalJob(self.folder, str(process.pid), tasks=list(range(tasks)), process=process)


def site_here(site: Site, job: Job) -> Site:
    """`site` with the GPUs of this machine, and no partition. Raises UserError for a job of several nodes."""
    import torch

    if job.cluster.nodes > 1:
        raise UserError(
            f"the job asks for {job.cluster.nodes} nodes, and --cluster local has this machine alone; add "
            "cluster.nodes=1 to the command"
        )
    return site.model_copy(
        update={"gpus_per_node": torch.cuda.device_count(), "cores_per_node": None, "partition": None}
    )


def controller_lives(pid: str, folder: Path) -> bool:
    """Whether the controller that had this pid still runs; another process may have got its number."""
    try:
        command = Path(f"/proc/{int(pid)}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return b"submitit.local._local" in command and str(folder).encode() in command
