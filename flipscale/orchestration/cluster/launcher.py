"""The callable that submitit runs in every task: it becomes `flipscale train RUN`, or torchrun."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Literal

from flipscale.distributed.placement import read_placement, rendezvous_host, rendezvous_port
from flipscale.orchestration.cluster.batch_script import PROCESSES_VARIABLE


@dataclass(frozen=True)
class Launch:
    """A task that replaces its own Python by the command that a person would type.

    A run therefore trains the same however it was started. submitit's own signal handlers save from inside
    a handler and leave all ranks but one running; here they never see a signal. The launcher started Python
    with the stop signals blocked, and they stay blocked until the training listens.

    Attributes:
        run: Path of the run directory.
        launcher: `srun` for one task per process, `torchrun` for one task per node.
    """

    run: str
    launcher: Literal["srun", "torchrun"]

    def __call__(self) -> None:
        """Replace this process by the training; does not return."""
        program = ["-m", "flipscale", "train", self.run]
        if self.launcher == "torchrun":
            program = [*_torchrun(), *program]

        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *program])


def _torchrun() -> list[str]:
    """Return the arguments of Python that start this node's share of the processes."""
    place = read_placement()
    processes = os.environ[PROCESSES_VARIABLE]
    address = rendezvous_host(place.nodes) if place.nodes else "127.0.0.1"

    return [
        *("-m", "torch.distributed.run", f"--nnodes={place.size}", f"--node-rank={place.rank}"),
        *(f"--nproc-per-node={processes}", "--max-restarts=0"),
        f"--master-addr={address}",
        f"--master-port={rendezvous_port(place.job_id, place.restarts)}",
    ]
