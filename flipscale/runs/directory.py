"""The run directory: the only truth between two starts of a run.

Only training writes into it; `flipscale submit` adds its submissions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from flipscale.config import Job, dump_job, load_job
from flipscale.errors import UserError
from flipscale.files import write_durably
from flipscale.runs.job_changes import check_same_job
from flipscale.runs.secret_values import check_no_secrets

_log = logging.getLogger(__name__)

_LEFT_BY_A_REFUSED_START = ("lock", "job.yaml.partial", "heartbeats")


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run; docs/run_directory.md describes them.

    Each file has one module that reads and writes it, which is named with its property.
    """

    path: Path

    @classmethod
    def of_checkpoint(cls, path: Path) -> RunDirectory:
        """Return the run of a checkpoint that nobody moved; at the top of a file system, the top itself."""
        return cls(path.resolve().parent.parent)

    @property
    def job(self) -> Path:
        """The resolved job as of the last start (this module)."""
        return self.path / "job.yaml"

    @property
    def lock(self) -> Path:
        """The file that names the start which owns the run (runs.lock)."""
        return self.path / "lock"

    @property
    def index(self) -> Path:
        """The identity of the training data (runs.identity)."""
        return self.path / "index.json"

    @property
    def weights(self) -> Path:
        """The origin of `model.weights` (runs.weights)."""
        return self.path / "weights.json"

    @property
    def tokenizer(self) -> Path:
        """The directory with the tokenizer's own files (runs.identity)."""
        return self.path / "tokenizer"

    @property
    def ledger(self) -> Path:
        """One line per closed segment (runs.ledger)."""
        return self.path / "ledger.jsonl"

    @property
    def open_segment(self) -> Path:
        """The segment under way (runs.ledger)."""
        return self.path / "segment.json"

    @property
    def heartbeats(self) -> Path:
        """The directory of the processes' last signs of life (runs.heartbeat)."""
        return self.path / "heartbeats"

    @property
    def metrics(self) -> Path:
        """One line per log step (runs.metrics)."""
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """One line per evaluation during training (runs.evaluations)."""
        return self.path / "evaluations.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints (runs.manifest, runs.checkpoint)."""
        return self.path / "checkpoints"

    @property
    def quarantine(self) -> Path:
        """Samples that could not be used (data.quarantine)."""
        return self.path / "quarantine.jsonl"

    @property
    def submissions(self) -> Path:
        """One line per submitted job (runs.submissions)."""
        return self.path / "submissions.jsonl"

    @property
    def starts(self) -> Path:
        """When the batch script of each start began and left (runs.noted_starts)."""
        return self.path / "starts.jsonl"

    @property
    def rehearsal(self) -> Path:
        """What `flipscale submit --rehearse` found before the last submission (cli.rehearse)."""
        return self.path / "rehearsal.json"

    @property
    def stop_file(self) -> Path:
        """The file that requests a stop while it exists."""
        return self.path / "STOP"

    @property
    def zero_file(self) -> Path:
        """The file that allows the next start to begin at zero (runs.resume_point)."""
        return self.path / "FROM_ZERO"

    def forget_stop_request(self) -> None:
        """Remove the STOP file, or an empty directory of its name. If that fails, the log names it."""
        _remove_request(self.stop_file, "the next start stops at once")

    def forget_zero_request(self) -> None:
        """Remove the FROM_ZERO file, as `forget_stop_request` removes the STOP file."""
        _remove_request(self.zero_file, "a start that misses its checkpoints begins at zero")


def _remove_request(file: Path, otherwise: str) -> None:
    try:
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s cannot be removed (%s); remove it, or %s", file, error.strerror, otherwise)


def run_directory(job: Job) -> RunDirectory:
    """Return the directory that `job` writes to: its `output`, or runs/NAME."""
    return RunDirectory(Path(job.output or f"runs/{job.name}").resolve())


def existing_run(path: Path) -> RunDirectory:
    """Return the run at `path`.

    Raises:
        UserError: If the path is not a run.
    """
    run = RunDirectory(path.resolve())
    if not run.job.is_file():
        raise UserError(
            f"{path} is not a run directory (it has no job.yaml); name the output of `flipscale train`"
        )
    return run


def recorded_job(run: RunDirectory) -> Job:
    """Return the resolved job that the run was last started with.

    Raises:
        UserError: If the job file cannot be read.
    """
    return load_job(run.job)


def prepare(run: RunDirectory, job: Job, samples_seen: int, saved: Job | None = None) -> None:
    """Create the directory or check that it belongs to this job, and record the job as it is now.

    Args:
        run: The run, which may not exist yet.
        job: The job of this start.
        samples_seen: Samples of the checkpoint that the run is resumed from; 0 for a new run.
        saved: The job in the manifest of that checkpoint, which counts before the directory's own record:
            a person may have edited job.yaml. None without a checkpoint.

    Raises:
        UserError: If the directory holds something else, or a job that differs in more than CHANGEABLE keys
            and phases that have not begun, if an address of the job has a secret that is not recorded yet, or
            if the directory cannot be written.
    """
    check_no_secrets(job, check_belongs(run, job, samples_seen, saved))

    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_durably(run.job, dump_job(job))
        run.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the run directory {run.path} cannot be written ({error.strerror}); set another `output`"
        ) from None


def check_belongs(run: RunDirectory, job: Job, samples_seen: int, saved: Job | None = None) -> Job | None:
    """Check that the directory is new, or belongs to this job; the arguments are those of `prepare`.

    Returns:
        The job that the run has recorded; None for a new run.

    Raises:
        UserError: If the directory holds something else, or a job that differs in more than it may.
    """
    check_not_foreign(run)
    before = saved or (recorded_job(run) if run.job.exists() else None)
    if before is not None:
        check_same_job(run.path, before, job, samples_seen)
    return before


def check_not_foreign(run: RunDirectory) -> None:
    """Check that an existing directory is a run, or what a start left that ended early.

    Raises:
        UserError: If the directory holds anything else.
    """
    if run.job.exists() or not run.path.is_dir():
        return

    if any(entry.name not in _LEFT_BY_A_REFUSED_START for entry in run.path.iterdir()):
        raise UserError(f"{run.path} is not empty and holds no run; set `output` to a new directory")
