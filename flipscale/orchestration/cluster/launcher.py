"""What submitit runs in every task of a job: it becomes `flipscale train RUN`, or torchrun on the node."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Literal

from flipscale.distributed.placement import read_placement, rendezvous_host, rendezvous_port
from flipscale.orchestration.cluster.batch_script import PROCESSES_VARIABLE


@dataclass(frozen=True)
class Launch:
    """Replaces the task's Python by the command that a person would type.

    So a run trains the same however it was started, and submitit's own signal handlers, which save from
    inside a handler and leave all ranks but one running, never see a signal: the launcher started Python
    with the stop signals blocked, and that lasts until the training listens.

    Args:
        run: path of the run directory.
        launcher: `srun` for one task a process, `torchrun` for one task a node.
    """

    run: str
    launcher: Literal["srun", "torchrun"]

    def __call__(self) -> None:
        program = ["-m", "flipscale", "train", self.run]
        if self.launcher == "torchrun":
            program = [*_torchrun(), *program]
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *program])


def _torchrun() -> list[str]:
    """The arguments of Python that start this node's share of the processes."""
    place = read_placement()
    processes = os.environ[PROCESSES_VARIABLE]
    return [
        *("-m", "torch.distributed.run", f"--nnodes={place.size}", f"--node-rank={place.rank}"),
        *(f"--nproc-per-node={processes}", "--max-restarts=0"),
        f"--master-addr={rendezvous_host(place.nodes) if place.nodes else '127.0.0.1'}",
        f"--master-port={rendezvous_port(place.job_id, place.restarts)}",
    ]
