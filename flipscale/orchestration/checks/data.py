"""The checks of a job's training data: shards, index, captions and tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from flipscale.data.shards.index import Index, expand_shards
from flipscale.data.shards.index_document import is_current, is_index_of, load_index, load_located
from flipscale.data.shards.storage import DataReadError, Storage, is_command, is_remote
from flipscale.data.text.of_job import load_job_tokenizer
from flipscale.errors import UserError
from flipscale.orchestration.checks.candidate import Candidate
from flipscale.orchestration.checks.finding import CheckWarning
from flipscale.runs.secret_values import check_no_secrets

_CHECKED_SHARDS = 64  # of a set that may have hundreds of thousands
_CHECKED_SAMPLES = 100  # of the first shard
_Item = TypeVar("_Item")


def check_data(candidate: Candidate) -> str:
    """Check some of the training shards, and the index that the run will use."""
    data = candidate.job.data
    if not candidate.run.job.exists():  # a run that has recorded a secret already is warned of
        check_no_secrets(candidate.job)
    paths = expand_shards(data.train)
    index = _usable_index(candidate, paths)
    storage = Storage(data.allow_pipe)

    try:
        if index is not None:
            index.verify(storage, _spread(index.shards))
            return f"{index.samples} samples in {len(index.shards)} shards, index in {index.directory}"
        for path in _spread(paths):
            _check_shard(path, storage, data.train)
    except DataReadError as error:
        raise CheckWarning(f"{error}; the nodes may reach what this machine does not") from None

    if len(paths) > _CHECKED_SHARDS:
        raise CheckWarning(
            f"{len(paths)} shards without an index, which the first segment would build while all processes "
            "wait; build it before with `flipscale data index` and set data.index"
        )
    return f"{len(paths)} shards; the first segment indexes them"


def check_captions(candidate: Candidate) -> str:
    """Look for each source of captions in the first samples of the first shard that is on this machine."""
    from flipscale.data.checks.caption_members import count_captions  # imports numpy

    data = candidate.job.data
    captions = data.captions
    path = next((path for path in expand_shards(data.train) if not is_remote(path)), None)
    if path is None:
        return f"{', '.join(captions)}; no shard is on this machine to look into"

    try:
        with open(path, "rb") as file:
            samples, counts = count_captions(file, captions, data.images, _CHECKED_SAMPLES)
    except OSError as error:
        return f"{', '.join(captions)}; {path} cannot be read here ({error.strerror})"

    if not samples:
        return f"{', '.join(captions)}; {path} holds no samples"
    found = ", ".join(f"{count} in {name}" for name, count in counts.items())
    nowhere = [name for name, count in counts.items() if not count]
    if nowhere:
        raise CheckWarning(
            f"data.captions names {nowhere[0]}, but the first {samples} samples of {path} have no "
            f"caption there ({found}); correct the name, or count all with `flipscale data check`"
        )
    return f"of {samples} samples, {found}"


def check_tokenizer(candidate: Candidate) -> str:
    """Check that the tokenizer can be loaded here, unless its vocabulary comes from the hub."""
    source = candidate.job.data.tokenizer
    vocab = source.vocab
    if vocab and not (vocab.startswith(("/", ".")) or vocab.endswith(".txt") or Path(vocab).exists()):
        return f"{source.kind}, {vocab} from the hub: the nodes need it in their cache, or a network"

    tokenizer = load_job_tokenizer(source)
    return f"{source.kind}, {tokenizer.vocab_size} tokens"


def _usable_index(candidate: Candidate, paths: list[str]) -> Index | None:
    """Return the index that the run will use, or None if its first segment has to build one."""
    data = candidate.job.data
    if data.index is not None:
        return load_located(Path(data.index), data.train, data.images)

    built = candidate.run.path / "index"
    if not is_current(built):
        return None
    index = load_index(built)
    return index.located(paths, data.train) if is_index_of(built, paths, data.images) else None


def _check_shard(path: str, storage: Storage, pattern: str) -> None:
    if is_command(path):
        return  # the command would have to run

    try:
        readable = storage.status(path).bytes > 0 if is_remote(path) else os.access(path, os.R_OK)
    except FileNotFoundError:
        readable = False
    if not readable:
        raise UserError(f"the shard {path} cannot be read here; check data.train = {pattern}")


def _spread(items: Sequence[_Item]) -> list[_Item]:
    """Return at most _CHECKED_SHARDS items, evenly spread, with the first and the last."""
    last = len(items) - 1
    places = {round(number * last / (_CHECKED_SHARDS - 1)) for number in range(_CHECKED_SHARDS)}
    return [items[place] for place in sorted(places)]
