"""The batch script of a job, as submitit writes it from a run, a site and what the job asks for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor

from flipscale.config import Site
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.runs.directory import RunDirectory

PROCESSES_VARIABLE = "FLIPSCALE_PROCESSES_PER_NODE"  # how many torchrun starts
UNSEEN = 66  # exit code of a node that does not see the run directory; no signal gives it

# Held back until the run listens for them: one that comes during the imports would kill the process.
_SIGNALS = ("TERM", "USR1", "USR2")
_MIB = 2**20


class Batch(SlurmExecutor):
    """submitit's executor; also where there is no srun, so that a script can be shown before it is submitted.

    Args:
        folder: for submitit's own files.
    """

    def __init__(self, folder: Path, site: Site) -> None:
        super().__init__(folder, max_num_timeout=10**6, python=python_command(site))

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, jobs: int = 1) -> str:
        """The text for sbatch; of an array where there are several jobs."""
        if jobs > 1:
            self.parameters["map_count"] = jobs
        try:
            return self._make_submission_file_text(self._submitit_command_str, "")
        finally:
            self.parameters.pop("map_count", None)


def python_command(site: Site) -> str:
    """Start Python on a node so that stop signals wait until the run asks for them (a line of shell)."""
    blocked = [f"--block-signal={name}" for name in _SIGNALS]
    return " ".join(["env", *blocked, site.python or shlex.quote(sys.executable)])


def batch(
    runs: Sequence[RunDirectory],
    folder: Path,
    name: str,
    asked: Allocation,
    site: Site,
    *,
    exclude: Sequence[str] = (),
    after: str | None = None,
    at_most: int | None = None,
) -> Batch:
    """Return the executor for one run, or for several as an array whose elements find their run in `folder`.

    Args:
        folder: submitit's; with several runs it holds a link NUMBER to each one's logs.
        exclude: nodes beside the site's.
        after: a job id; the job starts when that one has ended.
        at_most: jobs of the array that run at once.
    """
    executor = Batch(folder, site)
    array = len(runs) > 1
    srun = ["--kill-on-bad-exit=1"]
    options: dict[str, Any] = {"requeue" if site.restart == "requeue" else "no-requeue": True}
    if array:
        # The links lead each element's output to its own run. srun obeys the last of two equal options.
        logs = f"{folder}/%a/%A_%a"
        options |= {"output": f"{logs}_0_log.out", "error": f"{logs}_0_log.err"}
        srun += ["--output", f"{logs}_%t_log.out", "--error", f"{logs}_%t_log.err"]
    executor.update_parameters(
        job_name=name,
        partition=site.partition,
        account=site.account,
        qos=site.qos,
        constraint=site.constraint,
        exclude=",".join([*site.exclude, *exclude]) or None,
        nodes=asked.nodes,
        ntasks_per_node=tasks_per_node(site, asked),
        gpus_per_node=asked.gpus_per_node or None,
        cpus_per_task=_cpus_per_task(site, asked),
        mem=f"{asked.memory_per_node // _MIB}M" if asked.memory_per_node else None,
        time=asked.time_limit // 60,
        signal_delay_s=site.stop_before,
        dependency=f"afterany:{after}" if after else None,
        array_parallelism=at_most or len(runs),
        wckey=None,  # some sites refuse the one that submitit would set
        setup=_setup(folder if array else runs[0].path, site, asked, array=array),
        srun_args=srun,
        additional_parameters=options | site.sbatch,
    )
    return executor


def _setup(directory: Path, site: Site, asked: Allocation, *, array: bool) -> list[str]:
    run = f"{shlex.quote(str(directory))}{'/$SLURM_ARRAY_TASK_ID/..' if array else ''}"
    lines = [
        # A node without the run directory cannot write its log either: its processes would fail unheard.
        'srun --overlap --mpi=none --kill-on-bad-exit=0 --chdir=/ --nodes="$SLURM_NNODES" '
        f'--ntasks="$SLURM_NNODES" sh -c {shlex.quote(node_check(f"{run}/token", run))}',
        f"if [ $? -eq {UNSEEN} ]; then exit 2; fi",
        # An administrator may give the waiting job another number of nodes; srun goes by this.
        f'export SLURM_NTASKS="$((SLURM_NNODES * {tasks_per_node(site, asked)}))"',
        *site.setup,
    ]
    if (cpus := _cpus_per_task(site, asked)) is not None:
        # Since 22.05 srun no longer takes over the cores that the job was given for each task.
        lines.append(f"export SRUN_CPUS_PER_TASK={cpus}")
    return lines + [f"export {name}={shlex.quote(value)}" for name, value in environment(site, asked).items()]


def environment(site: Site, asked: Allocation) -> dict[str, str]:
    """What flipscale itself sets for the processes of a run, the site's own variables included."""
    own = {PROCESSES_VARIABLE: str(asked.processes_per_node)} if site.launcher == "torchrun" else {}
    return own | site.environment


def tasks_per_node(site: Site, asked: Allocation) -> int:
    return 1 if site.launcher == "torchrun" else asked.processes_per_node


def _cpus_per_task(site: Site, asked: Allocation) -> int | None:
    if asked.cpus_per_process is None:
        return None
    return asked.cpus_per_process * asked.processes_per_node // tasks_per_node(site, asked)


def node_check(file: str, run: str) -> str:
    """A line of shell that exits with UNSEEN where a node does not see `file`, and says so of `run`.

    It looks several times, since a network file system may show a new file late. Both are quoted already.
    """
    sentence = "does not see the run directory, which must lie on a file system that all nodes share:"
    return (
        f"for wait in 0 2 4; do sleep $wait; test -e {file} && exit 0; done; "
        f'echo "flipscale: ${{SLURMD_NODENAME:-$(hostname)}} {sentence}" {run} >&2; exit {UNSEEN}'
    )
