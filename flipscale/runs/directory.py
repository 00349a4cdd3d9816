"""The run directory: the only truth between two starts of a run. Only training writes into it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flipscale.budget import Budget
from flipscale.config import Job, dump_job, load_job
from flipscale.errors import RunError, UserError
from flipscale.files import write_durably

_SECONDS_TO_END = 60.0  # for a process of an older start that still holds the run
_log = logging.getLogger(__name__)

# Keys that may differ between two starts of a run: they change neither the samples nor the mathematics.
CHANGEABLE = (
    "output",
    "data.train",  # the index fingerprint tells whether it is the same data
    "data.index",
    "data.allow_pipe",
    "data.cache",
    "data.max_bad_fraction",
    "data.workers",
    "data.tokenizer.vocab",  # the tokenizer's fingerprint tells whether it is the same
    # All of sharding but the precision: what it spreads and recomputes changes no result.
    "sharding.strategy",
    "sharding.shard_size",
    "sharding.reshard_after_forward",
    "sharding.offload_optimizer",
    "sharding.activation_checkpointing",
    "sharding.compile",
    "sharding.micro_batch",
    "checkpoint",
    "logging",
    "evaluation",
    "hang",
    "cluster",
)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run, by the layout of docs/run_directory.md."""

    path: Path

    @property
    def job(self) -> Path:
        return self.path / "job.yaml"

    @property
    def index(self) -> Path:
        return self.path / "index.json"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def weights(self) -> Path:
        return self.path / "weights.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def stop_file(self) -> Path:
        return self.path / "STOP"

    @property
    def export(self) -> Path:
        return self.path / "export"


def run_directory(job: Job) -> RunDirectory:
    """The directory that `job` writes to: its `output`, or runs/NAME."""
    return RunDirectory(Path(job.output or f"runs/{job.name}").resolve())


def existing_run(path: Path) -> RunDirectory:
    """The run at `path`. Raises UserError where there is none."""
    run = RunDirectory(path.resolve())
    if not run.job.is_file():
        raise UserError(
            f"{path} is no run directory (it has no job.yaml); name the output of `flipscale train`"
        )
    return run


def recorded_job(run: RunDirectory) -> Job:
    """The resolved job that the run was last started with."""
    return load_job(run.job)


def prepare(run: RunDirectory, job: Job, samples_seen: int) -> None:
    """Create the directory, or check that it is this job's, and record the job as it is now.

    Raises UserError where the directory holds something else, or a job that differs in more than CHANGEABLE
    keys and phases that have not begun.
    """
    _check_not_foreign(run)
    if run.job.exists():
        _check_same_job(run, recorded_job(run), job, samples_seen)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_durably(run.job, dump_job(job))
        run.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"the run directory {run.path} cannot be written: {error.strerror}") from None


def committed_samples(run: RunDirectory) -> int:
    """Samples seen at the newest checkpoint that was committed, whether its files are still whole or not."""
    committed = run.checkpoints.glob("samples_*/manifest.json")
    return max((int(path.parent.name.removeprefix("samples_")) for path in committed), default=0)


def check_identity(
    run: RunDirectory, identity: Mapping[str, Any], save_tokenizer: Callable[[Path], None]
) -> None:
    """Record what the data of a new run is, or raise UserError where it is not what it was.

    Args:
        save_tokenizer: writes the tokenizer's files to a directory, so that the run holds them.
        identity: `fingerprint` (of the index), `tokenizer` (fingerprint), `samples` and `shards`
            ([name, samples] in index order); all that `flipscale data audit` needs beside the job.
    """
    if not run.index.exists():
        run.tokenizer.mkdir(exist_ok=True)
        save_tokenizer(run.tokenizer)
        write_durably(run.index, json.dumps(dict(identity)))
        return
    recorded = _recorded_identity(run)
    if recorded["fingerprint"] != identity["fingerprint"]:
        raise UserError(
            f"the training shards are not those that {run.path} began with "
            f"({recorded['samples']} samples then, {identity['samples']} now, or other names or sizes); "
            "restore them, or start a new run with another `output`"
        )
    if recorded["tokenizer"] != identity["tokenizer"]:
        raise UserError(
            f"the vocabulary is not the one that {run.path} began with; restore it (a copy is in "
            f"{run.tokenizer}), or start a new run with another `output`"
        )


def _recorded_identity(run: RunDirectory) -> dict[str, Any]:
    try:
        recorded = json.loads(run.index.read_text())
        return {key: recorded[key] for key in ("fingerprint", "tokenizer", "samples", "shards")}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{run.index} is damaged; restore it, or set another `output`") from None


class Hold:
    """A process's hold on a run; an older start of the same job, left over on a lost node, loses it."""

    def __init__(self, run: RunDirectory, descriptor: int, holder: str) -> None:
        self._path = run.path / "lock"
        self._descriptor = descriptor
        self._holder = holder
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)

    def check(self) -> None:
        """Raise RunError where a newer start has taken the run over: this one must not write any more."""
        try:
            holder = self._path.read_text()
        except FileNotFoundError:
            holder = "nobody"
        if holder != self._holder:
            raise RunError(f"the run belongs to {holder} now, not to {self._holder}", kind="superseded")


@contextmanager
def locked(
    run: RunDirectory, holder: str = "", may_follow: Callable[[str], bool] = str.isspace
) -> Iterator[Hold]:
    """Hold the run for this process.

    Args:
        holder: names this start; by default host and process.
        may_follow: whether the start of this name is known to be over or fenced off. If such a one still has
            the run, because its process was left behind, it gets a minute to end and then loses the run.

    Raises UserError while another process trains in it, and where the directory holds something else.
    """
    _check_not_foreign(run)
    path = run.path / "lock"
    holder = holder or f"{socket.gethostname()}.{os.getpid()}"
    deadline = time.monotonic() + _SECONDS_TO_END
    while True:
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"the run directory {run.path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            before = os.pread(descriptor, 1000, 0).decode(errors="replace")
            os.close(descriptor)
            if not may_follow(before):
                raise UserError(
                    f"another process is training in {run.path} ({before or 'nobody knows which'}); "
                    "stop it, or set another `output`"
                ) from None
            if time.monotonic() > deadline:
                _log.warning("taking %s over from %s, which was left behind", run.path, before)
                path.unlink(missing_ok=True)
            else:
                time.sleep(1.0)
        except OSError as error:
            # Some shared file systems have no locks; what is written in the file still fences.
            _log.warning("%s cannot be locked (%s)", path, error.strerror)
            break
    try:
        yield Hold(run, descriptor, holder)
    finally:
        os.close(descriptor)


def _check_not_foreign(run: RunDirectory) -> None:
    """Raise UserError where the directory holds something that no start of a run left behind."""
    if run.job.exists() or not run.path.is_dir():
        return
    if any(entry.name not in ("lock", "job.yaml.partial") for entry in run.path.iterdir()):
        raise UserError(f"{run.path} is not empty and holds no run; set `output` to a new directory")


def _check_same_job(run: RunDirectory, before: Job, now: Job, samples_seen: int) -> None:
    if before.name != now.name:
        raise UserError(
            f"{run.path} holds the run of the job {before.name!r}, not {now.name!r}; set another `output`"
        )
    begun = [span for span in Budget.of(before.phases, before.data.lanes).spans if span.start < samples_seen]
    old = _leaves(yaml.safe_load(dump_job(before)))
    new = _leaves(yaml.safe_load(dump_job(now)))
    changed: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or any(key == c or key.startswith(c + ".") for c in CHANGEABLE):
            continue
        if key.startswith("phases.") and int(key.split(".")[1]) >= len(begun):
            continue
        changed.append(f"{key} was {old.get(key, 'not set')}, now {new.get(key, 'not set')}")
    if changed:
        raise UserError(
            f"the job file changed since {run.path} began: {'; '.join(changed)}; change it back, or set "
            f"another `output` (in a run only {', '.join(CHANGEABLE)} and phases not yet begun may change)"
        )


def _leaves(document: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(document, dict) and document:
        items: Any = document.items()
    elif isinstance(document, list) and document:
        items = enumerate(document)
    else:
        return {prefix[:-1]: document}
    return {key: leaf for name, value in items for key, leaf in _leaves(value, f"{prefix}{name}.").items()}
