"""index.json: the training data and the vocabulary of a run, which stay the same until its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flipscale.errors import UserError
from flipscale.files import write_durably
from flipscale.runs.directory import RunDirectory


@dataclass(frozen=True)
class DataIdentity:
    """The data and the vocabulary of a run, which no later start may change.

    `flipscale data audit` needs only this record, the job and the quarantine list.

    Attributes:
        fingerprint: Hash of the data index, and of `sources` if there are any.
        tokenizer: Fingerprint of the tokenizer.
        samples: Samples of all shards.
        shards: Name and number of samples of each shard, in the order of the index.
        sources: Number of shards of each source of a mixture; None without a mixture.
    """

    fingerprint: str
    tokenizer: str
    samples: int
    shards: tuple[tuple[str, int], ...]
    sources: tuple[int, ...] | None = None


def check_identity(run: RunDirectory, identity: DataIdentity, save_tokenizer: Callable[[Path], None]) -> None:
    """Record the data of a new run, or check that a run still has the data that it began with.

    Args:
        run: The run; its directory exists.
        identity: The data of this start.
        save_tokenizer: Writes the tokenizer's files to a directory, so that the run keeps a copy.

    Raises:
        UserError: If the data or the vocabulary is not the recorded one, or the record is damaged.
    """
    if not run.index.exists():
        # Copy first: if index.json exists, the record must be complete.
        run.tokenizer.mkdir(exist_ok=True)
        save_tokenizer(run.tokenizer)
        write_durably(run.index, json.dumps(_to_record(identity)))
        return

    try:
        recorded = read_identity(run)
    except UserError as error:
        raise UserError(f"{error}, or set another `output`") from None

    if recorded.fingerprint != identity.fingerprint:
        raise UserError(
            f"the training shards are not those that {run.path} began with "
            f"({recorded.samples} samples then, {identity.samples} now, or other names or sizes); "
            "restore them, or start a new run with another `output`"
        )
    if recorded.tokenizer != identity.tokenizer:
        raise UserError(
            f"the vocabulary is not the one that {run.path} began with; restore it (a copy is in "
            f"{run.tokenizer}), or start a new run with another `output`"
        )


def read_identity(run: RunDirectory) -> DataIdentity:
    """Read index.json, which must exist.

    Raises:
        UserError: If it is damaged.
    """
    try:
        record = json.loads(run.index.read_text())
        sources = record.get("sources")
        return DataIdentity(
            fingerprint=record["fingerprint"],
            tokenizer=record["tokenizer"],
            samples=record["samples"],
            shards=tuple((str(name), int(samples)) for name, samples in record["shards"]),
            sources=None if sources is None else tuple(int(shards) for shards in sources),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{run.index} is damaged; restore it") from None


def _to_record(identity: DataIdentity) -> dict[str, object]:
    return {key: value for key, value in asdict(identity).items() if value is not None}
