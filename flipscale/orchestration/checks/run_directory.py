"""The checks of the place of a run: it can be written, all nodes see it, and checkpoints fit."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

from flipscale.config import Site
from flipscale.errors import UserError
from flipscale.formatting import format_bytes, format_gib
from flipscale.orchestration.checks.candidate import Candidate
from flipscale.orchestration.checks.finding import CheckWarning
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.orchestration.cluster.batch_script import visibility_command
from flipscale.orchestration.cluster.reservation import check_resumable
from flipscale.planning.plan import state_bytes
from flipscale.runs.directory import RunDirectory
from flipscale.runs.manifest import committed_checkpoints
from flipscale.slurm import SlurmError, run_slurm

# A node that lacks scontrol prints its name.
_NAMES_MISSING_SCONTROL = 'command -v scontrol > /dev/null || echo "${SLURMD_NODENAME:-$(hostname)}"'
_LOCAL_FILE_SYSTEMS = ("tmpfs", "ramfs", "overlay")


def check_run_directory(candidate: Candidate) -> str:
    """Check what is left to do and to resume from, and that nodes can write and share the directory."""
    check_resumable(candidate.run, candidate.job, from_zero=candidate.from_zero)
    path = candidate.run.path
    place = _existing_parent(path)
    try:
        # Permission bits do not show what root, a quota or a file server allows: write a file.
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"{place} cannot be written ({error.strerror}); set `output` to a directory on a shared file "
            "system"
        ) from None

    kind = _file_system(place)
    if kind in _LOCAL_FILE_SYSTEMS:
        raise CheckWarning(
            f"{path} is on {kind}, which other machines seldom see; a job whose nodes do not see it ends "
            "at once (--check-nodes asks them)"
        )
    return f"{path} on {kind}, {'resumes' if candidate.run.job.exists() else 'new'}"


def nodes_see_run(run: RunDirectory, allocation: Allocation, site: Site) -> str:
    """Ask nodes of the site whether they see the place of the run, with a temporary file that is put there.

    Returns:
        How many nodes see the run directory, as a sentence.

    Raises:
        UserError: If a node does not see it.
        CheckWarning: If no node is free to ask, or if scontrol is missing on one of them.
    """
    place = _existing_parent(run.path)
    with tempfile.NamedTemporaryFile(dir=place, prefix=".flipscale_token_") as token:
        options = {
            "partition": site.partition,
            "account": site.account,
            "qos": site.qos,
            "constraint": site.constraint,
        }
        sees = visibility_command(shlex.quote(token.name), shlex.quote(str(run.path)))
        command = f"({sees}) || exit $?; {_NAMES_MISSING_SCONTROL}"

        try:
            answer = run_slurm(
                *("srun", f"--nodes={allocation.nodes}", "--ntasks-per-node=1", "--time=1", "--immediate=10"),
                *("--kill-on-bad-exit=0", "--chdir=/", "--quiet"),
                *(f"--{option}={value}" for option, value in options.items() if value),
                *("sh", "-c", command),
            )
        except SlurmError as error:
            text = str(error)
            if "does not see the run directory" in text:
                message = text[text.index("flipscale: ") + len("flipscale: ") :]
                raise UserError(message) from None
            raise CheckWarning(f"no nodes could be asked whether they see {place}: {text}") from None
    if lacking := sorted(set(answer.split())):
        raise CheckWarning(
            f"scontrol is not on PATH of {', '.join(lacking)}, so that a job cannot requeue itself there; it "
            "submits a job that follows, with sbatch"
        )
    return f"{allocation.nodes} see {run.path}"


def check_disk(candidate: Candidate) -> str:
    """Check that the checkpoints which the run will keep fit the free space."""
    size = state_bytes(candidate.job)
    present = len(committed_checkpoints(candidate.run))
    # The newest checkpoint is written before the oldest is deleted.
    missing = max(1, candidate.job.checkpoint.keep_last + 1 - present)

    place = _existing_parent(candidate.run.path)
    free = shutil.disk_usage(place).free
    if free < size:
        raise UserError(
            f"{place} has no space for one checkpoint: {format_bytes(free)} are free and one takes "
            f"{format_bytes(size)}; free some, or set `output` elsewhere"
        )

    text = f"{format_gib(free, 0)} free; {missing} more checkpoints of {format_gib(size, 2)}"
    if free < missing * size:
        raise CheckWarning(f"{text} will be kept (checkpoint.keep_last), and do not fit")
    return text


def _existing_parent(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _file_system(path: Path) -> str:
    """Return the type of the file system of `path`, such as nfs4, lustre or ext4."""
    best = ""
    best_kind = "an unknown file system"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        mount = mount.replace("\\040", " ")
        # The longest mount point that contains the path; of two equal ones the later covers the earlier.
        if path.is_relative_to(mount) and len(mount) >= len(best):
            best = mount
            best_kind = kind
    return best_kind
