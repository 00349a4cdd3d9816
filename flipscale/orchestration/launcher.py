"""What runs in every process that Slurm or submitit starts for a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Launch:
    """Called without arguments by submitit, in the job.

    Args:
        run: the run directory.
        launcher: srun, where this is one training process, or torchrun, where it is a node's only one.
    """

    run: str
    launcher: Literal["srun", "torchrun"]

    def __call__(self) -> None:
        from flipscale.commands.training import train_job

        train_job(Path(self.run) / "job.yaml", [], None)
