"""Slurm's commands as short scripts, whose answers and inputs are in files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

CONFIG = """\
Configuration data as of now
AccountingStorageType   = accounting_storage/none
JobRequeue              = 1
KillWait                = 30 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SLURM_VERSION           = 22.05.8
SlurmctldParameters     = (null)
"""
PARTITIONS = (
    "PartitionName=low Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED PreemptMode=REQUEUE GraceTime=15 "
    "State=UP TotalNodes=4\n"
    "PartitionName=short Default=NO MaxNodes=2 MaxTime=00:30:00 PreemptMode=REQUEUE GraceTime=0 State=UP "
    "TotalNodes=4\n"
    "PartitionName=closed Default=NO MaxTime=UNLIMITED PreemptMode=OFF State=DOWN TotalNodes=4\n"
    "PartitionName=lost Default=NO MaxTime=UNLIMITED PreemptMode=CANCEL GraceTime=60 State=UP TotalNodes=4\n"
)
SINFO = "".join(f"low*|n{number}|idle\nshort|n{number}|idle\n" for number in range(1, 5))
_TOOLS = ("sh", "bash", "env", "true", "cat", "sleep", "tr")
_ANSWERS = {
    "sbatch": '[ "$1" = --test-only ] && {{ cat > {root}/judged; cat {root}/verdict >&2; '
    "if [ -s {root}/verdict ]; then exit 1; else exit 0; fi; }}; "
    'cat "$1" >> {root}/submitted; cat {root}/refusal >&2; [ -s {root}/refusal ] && exit 1; '
    "echo Submitted batch job 7",
    "scontrol": 'if [ "$2" = hostnames ]; then echo "$3" | tr , "\\n"; else cat {root}/"$2"; fi',
    "sinfo": "cat {root}/sinfo",
    "squeue": "cat {root}/queue",
    "srun": "cat {root}/nodes >&2; exit $(cat {root}/nodes_exit)",
}


@dataclass(frozen=True)
class FakeSlurm:
    """A PATH with these commands and those of the shell, and nothing else."""

    root: Path

    @classmethod
    def make(cls, root: Path, *, installed: bool = True) -> FakeSlurm:
        """Write the commands below `root`; without `installed`, only those of the shell."""
        (root / "bin").mkdir(parents=True)
        for tool in _TOOLS:
            (root / "bin" / tool).symlink_to(shutil.which(tool) or "")
        for name, body in _ANSWERS.items() if installed else ():
            script = root / "bin" / name
            script.write_text(f"#!/bin/sh\n{body.format(root=root)}\n")
            script.chmod(0o755)

        fake = cls(root)
        fake.answers(config=CONFIG, partition=PARTITIONS, queue="", refusal="", nodes="", nodes_exit="0")
        fake.answers(sinfo=SINFO, verdict="")
        return fake

    @property
    def path(self) -> str:
        """The value of PATH."""
        return str(self.root / "bin")

    def answers(self, **texts: str) -> None:
        """Change what the commands answer, by the names of the files in `root`."""
        for name, text in texts.items():
            (self.root / name).write_text(text)

    def submitted(self) -> str:
        """Return all scripts that sbatch got."""
        path = self.root / "submitted"
        return path.read_text() if path.exists() else ""
