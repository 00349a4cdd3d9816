"""index.json: the training data and the vocabulary of a run, which stay the same until its end."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flipscale.config import TokenizerSource
from flipscale.data.order.mixture import TURNS
from flipscale.data.text.of_job import load_job_tokenizer
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.documents import read_as
from flipscale.errors import UserError
from flipscale.files import read_regular, write_durably
from flipscale.runs.directory import RunDirectory
from flipscale.scratch import scratch_directory

_log = logging.getLogger(__name__)

Count = Annotated[int, Field(ge=0, lt=1 << 40)]


@dataclass(frozen=True)
class DataIdentity:
    """The data and the vocabulary of a run, which no later start may change.

    `flipscale data audit` needs only this record, the job and the quarantine list.

    Attributes:
        fingerprint: Hash of the data index, and of `sources` and `turns` if there are any.
        tokenizer: Fingerprint of the tokenizer.
        samples: Samples of all shards.
        shards: Name and number of samples of each shard, in the order of the index.
        sources: Number of shards of each source of a mixture; None without a mixture.
        turns: Version of the rule by which lanes take from the sources in turn (see `Mixture`). Runs that
            began before there was a second one recorded none, and runs without a mixture record none.
    """

    fingerprint: str
    tokenizer: str
    samples: Count
    shards: tuple[tuple[str, Count], ...]
    sources: tuple[Count, ...] | None = None
    turns: Annotated[int, Field(ge=1, le=TURNS)] = 1


def check_identity(
    run: RunDirectory, identity: DataIdentity, save_tokenizer: Callable[[Path], None], samples_seen: int = 0
) -> None:
    """Record the data of a new run, or check that a run still has the data that it began with.

    Args:
        run: The run; its directory exists.
        identity: The data of this start.
        save_tokenizer: Writes the tokenizer's files to a directory, so that the run keeps a copy.
        samples_seen: Samples of the checkpoint that the run is resumed from. A run that has any has a record.

    Raises:
        UserError: If the data or the vocabulary is not the recorded one, or the record is damaged or lost.
    """
    if not run.index.exists() and not samples_seen:
        # Copy first: if index.json exists, the record must be complete.
        _copy_tokenizer(run.tokenizer, save_tokenizer)
        write_durably(run.index, json.dumps(_to_record(identity)))
        return

    try:
        recorded = read_identity(run)
    except UserError as error:
        raise UserError(f"{error}, or set another `output`") from None

    if recorded.fingerprint != identity.fingerprint:
        raise UserError(
            f"the training shards are not those that {run.path} began with "
            f"({recorded.samples} samples then, {identity.samples} now, or other names or sizes), or "
            f"{run.index.name} was edited; restore them, or start a new run with another `output`"
        )
    if recorded.tokenizer != identity.tokenizer:
        raise UserError(
            f"the vocabulary is not the one that {run.path} began with; restore it (a copy is in "
            f"{run.tokenizer}), or start a new run with another `output`"
        )
    _copy_tokenizer(run.tokenizer, save_tokenizer)


def read_identity(run: RunDirectory) -> DataIdentity:
    """Read index.json.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    try:
        identity = read_as(DataIdentity, run.index)
    except FileNotFoundError:
        raise UserError(
            f"there is no {run.index}, which says what the run was trained on; restore it"
        ) from None
    counted = sum(samples for _, samples in identity.shards)
    if counted != identity.samples or sum(identity.sources or [len(identity.shards)]) != len(identity.shards):
        raise UserError(f"{run.index} is damaged (its counts contradict each other); restore it")
    return identity


def recorded_turns(run: RunDirectory) -> int:
    """Return the version of the rule by which a run's mixture takes turns: that of its first start.

    Raises:
        UserError: If index.json is damaged.
    """
    return read_identity(run).turns if run.index.exists() else TURNS


def recorded_data(run: RunDirectory, source: TokenizerSource) -> tuple[DataIdentity, Tokenizer]:
    """Return the data that a run was trained on, and the tokenizer that it keeps.

    Args:
        run: The run.
        source: The `data.tokenizer` block of its job.

    Raises:
        UserError: If a file is missing or damaged, or if the tokenizer is another than the run began with.
    """
    if not run.index.exists():
        raise UserError(f"there is no {run.index}; restore it, or name a checkpoint within its run")

    identity = read_identity(run)
    tokenizer = load_job_tokenizer(source, run.tokenizer)
    if tokenizer.fingerprint != identity.tokenizer:
        raise UserError(
            f"{run.tokenizer} is not the tokenizer that the run was trained with; restore it (a start of the "
            "run writes it again)"
        )
    return identity, tokenizer


def _copy_tokenizer(directory: Path, save: Callable[[Path], None]) -> None:
    """Write the tokenizer's files to the run, unless they are there already. A damaged copy is replaced."""
    directory.mkdir(exist_ok=True)
    with scratch_directory() as scratch:
        save(scratch)
        for file in sorted(scratch.iterdir()):
            text = file.read_text(encoding="utf-8")
            copy = directory / file.name
            if not _holds(copy, text):
                if os.path.lexists(copy):
                    _log.warning("%s is not as it was written, and is written again", copy)
                write_durably(copy, text)


def _holds(path: Path, text: str) -> bool:
    try:
        return read_regular(path) == text.encode()
    except OSError:
        return False


def _to_record(identity: DataIdentity) -> dict[str, object]:
    record: dict[str, object] = {key: value for key, value in asdict(identity).items() if value is not None}
    if identity.sources is None:
        del record["turns"]
    return record
