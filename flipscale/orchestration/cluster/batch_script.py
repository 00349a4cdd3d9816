"""The batch script of a job: sbatch's options, the set-up of a segment, and one srun of all its processes.

submitit renders the options as `#SBATCH` lines and adds the line that starts the tasks:

    #!/bin/bash
    # Parameters
    #SBATCH --nodes=2 ...            sbatch_options(), one line per option
    # setup
    srun ... sh -c 'test -e token'   SETUP
    ...                              the site's `setup` lines and variables
    # command
    export SUBMITIT_EXECUTOR=slurm
    srun ... python -m submitit.core._submit RUN/logs
    # teardown
    ...                              script_end.last_lines()

docs/slurm.md shows a whole script; tests/orchestration/cluster/golden has one for each example site.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from submitit.slurm.slurm import SlurmExecutor

from flipscale.config import Site
from flipscale.errors import UserError
from flipscale.formatting import control_character
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.orchestration.cluster.script_end import last_lines
from flipscale.orchestration.cluster.script_notes import note_lines
from flipscale.planning.network import FABRIC_VARIABLE, NODE_VARIABLE
from flipscale.runs.directory import RunDirectory

PROCESSES_VARIABLE: Final = "FLIPSCALE_PROCESSES_PER_NODE"
"""The environment variable with the number of processes that torchrun starts on a node."""
UNSEEN: Final = 66
"""The exit code of a node that does not see the run directory; no signal produces it."""

# The first lines of a segment:
# - A node without the run directory cannot write its log either, so its processes would fail silently.
#   Every node looks for the run's token first, and the job ends with a message if one does not find it.
# - An administrator may give a waiting job another number of nodes; srun starts SLURM_NTASKS processes.
SETUP: Final = """\
srun --overlap --mpi=none --kill-on-bad-exit=0 --chdir=/ --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" \
sh -c {visibility_command}
if [ $? -eq {unseen} ]; then exit 2; fi
export SLURM_NTASKS="$((SLURM_NNODES * {tasks_per_node}))"
"""

# A line of the site's setup that fails ends the job at once; else the training would begin without what the
# line was for. What fails within a file that a line sources counts only by the end of that line.
GUARD: Final = """\
trap 'if [ "${#BASH_SOURCE[@]}" -eq 1 ]; then \
echo "flipscale: a setup line of the site failed: $BASH_COMMAND" >&2; exit 2; fi' ERR"""

# A network file system may show a new file late, so a node looks three times within 6 s.
VISIBILITY: Final = """\
for wait in 0 2 4; do sleep $wait; test -e {file} && exit 0; done; \
echo "flipscale: ${{SLURMD_NODENAME:-$(hostname)}} does not see the run directory, \
which must be on a file system that all nodes share:" {run} >&2; exit {unseen}"""

# Blocked until the run listens for them: a signal that comes during the imports would kill the process.
_SIGNALS: Final = ("TERM", "USR1", "USR2")
_MIB: Final = 2**20

_Option = str | int | bool


@dataclass(frozen=True)
class ScriptOptions:
    """The choices that differ between two submissions of the same job.

    Attributes:
        folder: Folder of submitit's files. For several runs it holds a link NUMBER to the logs of each run.
        name: Name of the job in the queue.
        exclude: Nodes to avoid, in addition to the site's.
        dependency: Id of a job; the new job starts when that one has ended.
        at_most: Number of array elements that may run at the same time; None for all.
    """

    folder: Path
    name: str
    exclude: Sequence[str] = ()
    dependency: str | None = None
    at_most: int | None = None


class SlurmScript(SlurmExecutor):
    """A batch script that can be shown and submitted; showing it works on machines without Slurm.

    Args:
        folder: Folder of submitit's files.
        site: The cluster that the script is for.
    """

    def __init__(self, folder: Path, site: Site) -> None:
        super().__init__(folder, max_num_timeout=10**6, python=python_command(site))

    @classmethod
    def affinity(cls) -> int:
        """Return a positive number, so that submitit accepts a machine without srun."""
        return 2

    def text(self, jobs: int = 1) -> str:
        """Return the script as sbatch reads it.

        Args:
            jobs: Number of array elements; 1 for a single job.
        """
        if jobs > 1:
            self.parameters["map_count"] = jobs
        try:
            return self._make_submission_file_text(self._submitit_command_str, "")
        finally:
            self.parameters.pop("map_count", None)


def write_script(
    runs: Sequence[RunDirectory], allocation: Allocation, site: Site, options: ScriptOptions
) -> SlurmScript:
    """Return the script for one run, or the script of an array for several runs.

    Raises:
        UserError: If the path of a run cannot be written into a script.
    """
    for run_directory in runs:
        _check_path(run_directory.path)
    array = len(runs) > 1
    script = SlurmScript(options.folder, site)

    extra: dict[str, _Option] = {"requeue" if site.restart == "requeue" else "no-requeue": True}
    srun = ["--kill-on-bad-exit=1"]
    if array:
        # The links lead the output of each element to its own run. srun obeys the last of two equal options.
        logs = f"{options.folder}/%a/%A_%a"
        extra |= {"output": f"{logs}_0_log.out", "error": f"{logs}_0_log.err"}
        srun += ["--output", f"{logs}_%t_log.out", "--error", f"{logs}_%t_log.err"]

    directory = shlex.quote(str(options.folder if array else runs[0].path))
    run = f"{directory}/$SLURM_ARRAY_TASK_ID/.." if array else directory
    script.update_parameters(
        **sbatch_options(allocation, site, options),
        array_parallelism=options.at_most or len(runs),
        wckey=None,  # some sites refuse the key that submitit would set
        setup=_setup(run, site, allocation),
        teardown=last_lines(run, python_command(site), requeues=site.restart == "requeue"),
        srun_args=srun,
        additional_parameters=extra | site.sbatch,
    )
    return script


def _check_path(path: Path) -> None:
    text = str(path)
    if (sign := control_character(text)) is not None:
        raise UserError(
            f"the run directory {text!r} contains {sign!r}, which would end a line of the batch script; set "
            "another `output`"
        )
    if unusable := sorted(set(text) & set("%\\")):
        raise UserError(
            f"{path} contains {unusable[0]!r}, which has a meaning for Slurm; set another `output`"
        )


def sbatch_options(allocation: Allocation, site: Site, options: ScriptOptions) -> dict[str, _Option | None]:
    """Return sbatch's options by submitit's names for them; None leaves the cluster's default."""
    return {
        "job_name": options.name,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "exclude": ",".join([*site.exclude, *options.exclude]) or None,
        "nodes": allocation.nodes,
        "ntasks_per_node": tasks_per_node(site, allocation),
        "gpus_per_node": allocation.gpus_per_node or None,
        "cpus_per_task": _cpus_per_task(site, allocation),
        "mem": f"{allocation.memory_per_node // _MIB}M" if allocation.memory_per_node else None,
        "time": allocation.time_limit // 60,
        "signal_delay_s": site.stop_before,
        "dependency": f"afterany:{options.dependency}" if options.dependency else None,
    }


def _setup(run: str, site: Site, allocation: Allocation) -> list[str]:
    """Return the lines before the tasks start; `run` is the quoted path of the run directory."""
    first = SETUP.format(
        visibility_command=shlex.quote(visibility_command(f"{run}/token", run)),
        unseen=UNSEEN,
        tasks_per_node=tasks_per_node(site, allocation),
    )
    lines = [*first.removesuffix("\n").split("\n"), *note_lines(run)]
    if site.setup:
        lines += [GUARD, *site.setup, "trap - ERR"]

    cpus = _cpus_per_task(site, allocation)
    if cpus is not None:
        # Since 22.05 srun no longer takes over the cores that the job was given for each task.
        lines.append(f"export SRUN_CPUS_PER_TASK={cpus}")

    variables = environment(site, allocation)
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]

    # The last lines must follow a failed srun, whatever the site's lines have set.
    return [*lines, "set +e", _python_check(site)]


def _python_check(site: Site) -> str:
    """Return a line of shell that ends the job with a message if its Python cannot start flipscale."""
    command = python_command(site)
    sentence = shlex.quote(f"flipscale: this command does not start flipscale here: {command}")
    fix = shlex.quote("flipscale: correct python or setup in the site file, or install flipscale for it")
    check = f"{command} -c 'import flipscale, submitit'"
    return f"{check} || {{ echo {sentence} >&2; echo {fix} >&2; exit 2; }}"


def visibility_command(file: str, run: str) -> str:
    """Return a line of shell that exits with UNSEEN and a message if a node does not see a file.

    Args:
        file: Path of the file, quoted for the shell.
        run: Path of the run directory for the message, quoted for the shell.
    """
    return VISIBILITY.format(file=file, run=run, unseen=UNSEEN)


def python_command(site: Site) -> str:
    """Return the line of shell that starts Python with the stop signals blocked until the run listens."""
    blocked = [f"--block-signal={name}" for name in _SIGNALS]
    return " ".join(["env", *blocked, site.python or shlex.quote(sys.executable)])


def environment(site: Site, allocation: Allocation) -> dict[str, str]:
    """Return the variables that are set for the processes of a run, including the site's."""
    own: dict[str, str] = {}
    if site.launcher == "torchrun":
        own[PROCESSES_VARIABLE] = str(allocation.processes_per_node)
    if site.network is not None:
        links = {NODE_VARIABLE: site.network.node_bandwidth, FABRIC_VARIABLE: site.network.fabric_bandwidth}
        own |= {name: str(value) for name, value in links.items() if value is not None}
    return own | site.environment


def tasks_per_node(site: Site, allocation: Allocation) -> int:
    """Return the number of tasks that srun starts on a node; torchrun starts the processes of its node."""
    return 1 if site.launcher == "torchrun" else allocation.processes_per_node


def _cpus_per_task(site: Site, allocation: Allocation) -> int | None:
    if allocation.cpus_per_process is None:
        return None
    return allocation.cpus_per_process * allocation.processes_per_node // tasks_per_node(site, allocation)
