"""The checkpoints and the quarantine list of a run, as its page shows them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flipscale.data.quarantine import BadRecord, kind, scan_quarantine
from flipscale.runs.directory import RunDirectory
from flipscale.runs.manifest import committed_checkpoints, read_latest, read_manifest

_QUARANTINE_EXAMPLES = 20


@dataclass(frozen=True)
class CheckpointFacts:
    """A committed checkpoint."""

    name: str
    samples: int
    written: float
    """The time at which it was committed, in seconds since 1970."""
    bytes: int
    permanent: bool
    """Whether it is kept when newer ones are written."""
    digest: str
    """The order digest, 16 hexadecimal digits."""
    latest: bool


@dataclass(frozen=True)
class QuarantineFacts:
    """The samples that could not be used."""

    count: int
    kinds: list[tuple[str, int]]
    """The kinds of reasons with their numbers of samples, most frequent first."""
    examples: list[BadRecord]
    """The first records of the list."""


def read_checkpoints(run: RunDirectory) -> list[CheckpointFacts]:
    """Return the committed checkpoints, oldest first; only their manifests are read.

    A manifest that cannot be read is left out: its checkpoint is being deleted, or damaged, in which case
    `flipscale train` reports it.
    """
    latest = read_latest(run.checkpoints)

    checkpoints: list[CheckpointFacts] = []
    for checkpoint in committed_checkpoints(run):
        try:
            manifest = read_manifest(checkpoint.path)
            written = checkpoint.manifest.stat().st_mtime
        except (OSError, ValueError):
            continue

        name = checkpoint.path.name
        checkpoints.append(
            CheckpointFacts(
                name=name,
                samples=manifest.progress.samples_seen,
                written=written,
                bytes=sum(file.bytes for file in manifest.files.values()),
                permanent=manifest.permanent,
                digest=manifest.progress.digest.hex(),
                latest=name == latest,
            )
        )
    return checkpoints


def read_quarantine_facts(run: RunDirectory) -> QuarantineFacts:
    """Count the quarantined samples by kind of reason; damaged lines of the list are left out."""
    kinds: Counter[str] = Counter()
    examples: list[BadRecord] = []
    for record in scan_quarantine(run.quarantine):
        kinds[kind(record.reason)] += 1
        if len(examples) < _QUARANTINE_EXAMPLES:
            examples.append(record)

    return QuarantineFacts(kinds.total(), kinds.most_common(), examples)
