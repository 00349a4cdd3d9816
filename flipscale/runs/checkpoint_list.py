"""The list of a run's checkpoints, as a person asks for it: damage is named, and nothing is written.

This module does not import torch, so that looking at a run is quick.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.errors import UserError, words_of
from flipscale.formatting import format_value
from flipscale.runs.commit_order import ListedCheckpoint, sorted_by_commit
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.job_changes import belongs_to
from flipscale.runs.ledger import utc
from flipscale.runs.manifest import MANIFEST, looks_like_a_checkpoint, read_latest, read_manifest, samples_of
from flipscale.runs.unfinished import is_unfinished
from flipscale.runs.verification import DamagedCheckpoint, manifest_problem, verify

Rule = Literal["phase_end", "keep_every", "keep_last"]
"""Why a checkpoint stays when newer ones are saved. The first two keep it permanently."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint of the run, which may be damaged.

    Attributes:
        name: The name of its directory.
        samples: Samples seen.
        phase: The name of the phase in which its last sample was seen; None if the job has no such sample.
        saved: When its manifest was written, as ISO time in UTC; None without a manifest.
        bytes: Size of its files.
        latest: Whether LATEST names it.
        kept: The rule of the run's job that keeps it; None if no rule does, or if its manifest is damaged.
        problem: What is wrong with it; None if nothing is known to be.
    """

    name: str
    samples: int
    phase: str | None
    saved: str | None
    bytes: int
    latest: bool
    kept: Rule | None
    problem: str | None


@dataclass(frozen=True)
class OtherDirectory:
    """What is next to the checkpoints of the run, and is not one of them.

    Attributes:
        name: Its name.
        bytes: Size of its files.
        reason: How it shows that it is not a checkpoint of the run.
    """

    name: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class CheckpointList:
    """The contents of a run's directory of checkpoints.

    Attributes:
        latest: What LATEST holds: the name of a checkpoint; empty if the file is missing.
        checkpoints: The checkpoints in the order of their commit, the first commit first.
        others: All other directories, by name.
    """

    latest: str
    checkpoints: Sequence[StoredCheckpoint]
    others: Sequence[OtherDirectory]

    @property
    def damaged(self) -> Sequence[StoredCheckpoint]:
        """The checkpoints with which something is wrong."""
        return [checkpoint for checkpoint in self.checkpoints if checkpoint.problem is not None]


def list_checkpoints(run: RunDirectory) -> CheckpointList:
    """List the checkpoints of a run; only their manifests are read.

    Raises:
        UserError: If the run's job or the directory of the checkpoints cannot be read, or if it is empty.
    """
    job = recorded_job(run)
    document = job.model_dump(mode="json", exclude_none=True)
    listed: list[ListedCheckpoint] = []
    others: list[OtherDirectory] = []
    problems: dict[Path, str] = {}

    for path in _directories(run):
        samples = samples_of(path.name)
        if samples is None:
            others.append(OtherDirectory(path.name, _size(path), _reason(path.name)))
            continue

        entry = ListedCheckpoint(path, samples, None)
        try:
            entry = replace(entry, manifest=read_manifest(path))
        except UserError as error:
            problems[path] = str(error).removeprefix(f"{path / MANIFEST}: ")
        except (OSError, ValueError) as error:
            problems[path] = manifest_problem(error)

        if not os.path.lexists(path):
            continue  # training has deleted it in the meantime
        if (foreign := _foreign(entry, document)) is not None:
            others.append(OtherDirectory(path.name, _size(path), foreign))
        else:
            listed.append(entry)

    if not listed and not others:
        raise UserError(f"{run.path} has no checkpoints; `flipscale status` shows whether training has begun")
    latest = read_latest(run.checkpoints)
    return CheckpointList(latest, _described(sorted_by_commit(listed), job, latest, problems), others)


def verify_checkpoints(
    run: RunDirectory, listed: CheckpointList, report: Callable[[int], None]
) -> CheckpointList:
    """Compare every file of the listed checkpoints with the manifests, as a start does before it resumes.

    Args:
        run: The run.
        listed: Its checkpoints. Those that training deletes in the meantime are left out of the result.
        report: A function that is called with the bytes of each block that was read.

    Raises:
        StoppedEarly: If the storage does not answer in time, which says nothing about what it holds.
    """
    verified: list[StoredCheckpoint] = []
    for checkpoint in listed.checkpoints:
        path = run.checkpoints / checkpoint.name
        problem = checkpoint.problem or _damage(path, report)
        if problem is None or os.path.lexists(path):
            verified.append(replace(checkpoint, problem=problem))

    return replace(listed, checkpoints=verified)


def _damage(path: Path, report: Callable[[int], None]) -> str | None:
    try:
        verify(path, report)
    except (DamagedCheckpoint, UserError) as problem:
        return str(problem)
    return None


def _directories(run: RunDirectory) -> list[Path]:
    """Return the directories below checkpoints/, and whatever else has a name like theirs, by name."""
    try:
        paths = sorted(run.checkpoints.iterdir())
        return [path for path in paths if path.is_dir() or looks_like_a_checkpoint(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{run.checkpoints} cannot be read ({words_of(error)}); bring the directory back"
        ) from None


def _reason(name: str) -> str:
    if is_unfinished(name):
        return "a save or a deletion that is under way, or that was interrupted; the next start removes it"
    return "its name is not samples_ and the samples seen in 12 digits"


def _foreign(entry: ListedCheckpoint, job: Mapping[str, Any]) -> str | None:
    """Return how a manifest shows that its checkpoint is of another run; None if it does not."""
    manifest = entry.manifest
    if manifest is None or belongs_to(manifest.job, job, entry.samples):
        return None

    named = format_value(manifest.job.get("name"))
    return f"the job in its manifest, called {named}, is not that of the run's job.yaml"


def _described(
    ordered: Sequence[ListedCheckpoint], job: Job, latest: str, problems: Mapping[Path, str]
) -> list[StoredCheckpoint]:
    """Describe checkpoints that are in the order of their commit."""
    spans = Budget.of(job.phases, job.data.lanes).spans
    # As `Pruner` counts: neither links nor damaged manifests are among the last commits.
    countable = [entry.path for entry in ordered if entry.manifest and not entry.path.is_symlink()]
    last = countable[-job.checkpoint.keep_last :]

    def kept(entry: ListedCheckpoint) -> Rule | None:
        if entry.manifest is not None and entry.manifest.permanent:
            return "phase_end" if entry.samples in [span.stop for span in spans] else "keep_every"
        return "keep_last" if entry.path in last else None

    return [
        StoredCheckpoint(
            name=entry.path.name,
            samples=entry.samples,
            # The checkpoint at the end of a phase belongs to this phase, though the next one begins there.
            phase=next((span.phase.name for span in spans if entry.samples <= span.stop), None),
            saved=_saved(entry.path),
            bytes=_size(entry.path),
            latest=entry.path.name == latest,
            kept=kept(entry),
            problem=problems.get(entry.path),
        )
        for entry in ordered
    ]


def _saved(path: Path) -> str | None:
    try:
        return utc((path / MANIFEST).stat().st_mtime, "seconds")
    except OSError:
        return None


def _size(path: Path) -> int:
    """Return the bytes of all files at or below a path; what is deleted in the meantime counts as nothing."""
    walked = (Path(top, name) for top, _, names in os.walk(path) for name in names)
    size = 0
    for file in walked if path.is_dir() else [path]:
        try:
            size += file.lstat().st_size
        except OSError:
            continue
    return size
