"""The checkpoints and the quarantine list of a run, as its page shows them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from flipscale import jsonl
from flipscale.data.quarantine import kind
from flipscale.order_digest import OrderDigest
from flipscale.runs.directory import RunDirectory

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
    examples: list[dict[str, Any]]
    """The first records of the list."""


def read_checkpoints(run: RunDirectory) -> list[CheckpointFacts]:
    """Return the committed checkpoints, oldest first; only their manifests are read.

    A manifest that cannot be read is left out: its checkpoint is being deleted, or damaged, in which case
    `flipscale train` reports it.
    """
    latest = run.checkpoints / "LATEST"
    newest = latest.read_text().strip() if latest.is_file() else ""

    checkpoints: list[CheckpointFacts] = []
    for path in sorted(run.checkpoints.glob("samples_*/manifest.json")):
        try:
            manifest = json.loads(path.read_text())
            progress = manifest["progress"]
            checkpoints.append(
                CheckpointFacts(
                    name=path.parent.name,
                    samples=int(progress["samples_seen"]),
                    written=path.stat().st_mtime,
                    bytes=sum(int(file["bytes"]) for file in manifest["files"].values()),
                    permanent=bool(manifest["permanent"]),
                    digest=OrderDigest(int(progress["digest"])).hex(),
                    latest=path.parent.name == newest,
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue

    return checkpoints


def read_quarantine_facts(run: RunDirectory) -> QuarantineFacts:
    """Count the quarantined samples by kind of reason; damaged lines of the list are left out."""
    kinds: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    for record in jsonl.scan(run.quarantine):
        kinds[kind(str(record.get("reason", "")))] += 1
        if len(examples) < _QUARANTINE_EXAMPLES:
            examples.append(record)

    return QuarantineFacts(kinds.total(), kinds.most_common(), examples)
