"""Proof of the sample order: recompute a run's order digest from its index and quarantine list alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from flipscale.budget import Budget, epochs
from flipscale.data.order import lanes
from flipscale.data.order.lanes import Int64s, Samples
from flipscale.data.order.mixture import Mixture, Strand, job_sources
from flipscale.data.quarantine import read_quarantine
from flipscale.errors import UserError
from flipscale.order_digest import OrderDigest
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.identity import read_identity
from flipscale.runs.ledger import read_ledger
from flipscale.runs.manifest import committed_checkpoints, read_progress

_SAMPLES_AT_ONCE = 1 << 19
_ORDINAL_BITS = 40  # of a sample key
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """A place where the run recorded its order digest, and what it must be there (16 hex digits)."""

    samples_seen: int
    source: str
    recorded: str
    expected: str


@dataclass(frozen=True)
class AuditReport:
    samples_seen: int
    dataset_samples: int
    epochs: float
    unusable: int  # samples in the quarantine list
    replaced: int  # positions where another sample of the window stood in
    marks: tuple[Mark, ...]

    @property
    def proven(self) -> bool:
        return all(mark.recorded == mark.expected for mark in self.marks)


@dataclass(frozen=True)
class Expected:
    """What a stretch of the run must have read."""

    digest: OrderDigest
    replaced: int  # positions whose own sample is unusable, so that another of its window stood in


def audit(run: RunDirectory, *, workers: int = 1) -> AuditReport:
    """Recompute the digest at every ledger line and checkpoint of `run`, reading nothing but its directory.

    Raises UserError where nothing was recorded yet, or a record is damaged.
    """
    if not run.index.is_file():
        raise UserError(f"{run.path} has no index.json, so nothing was trained in it yet")
    job = recorded_job(run)
    identity = read_identity(run)
    try:
        counts = [samples for _, samples in identity.shards]
        sources = job_sources(job.data, identity.sources)
        order = Mixture(counts, job.data.lanes, job.data.window, job.seed, sources)
    except ValueError:
        raise UserError(f"{run.index} is damaged; restore it") from None
    recorded = _recorded(run)
    budget = Budget.of(job.phases, job.data.lanes)
    for stop, source in recorded:
        if not budget.is_boundary(stop):
            raise UserError(f"{source} in {run.path} ends at {stop} samples, where no step of the job ends")
    bad = sample_keys((record.shard, record.ordinal) for record in read_quarantine(run.quarantine))
    marks: list[Mark] = []
    total = OrderDigest()
    start = replaced = 0
    for (stop, source), digest in sorted(recorded.items()):
        if stop > start:
            part = expected_order(order, bad, start, stop, workers=workers)
            total += part.digest
            replaced += part.replaced
            start = stop
        marks.append(Mark(stop, source, digest, total.hex()))
    return AuditReport(start, order.samples, epochs(start, order.samples), len(bad), replaced, tuple(marks))


def _recorded(run: RunDirectory) -> dict[tuple[int, str], str]:
    """The run's own digests, by the samples seen and by what recorded them."""
    recorded: dict[tuple[int, str], str] = {}
    for line in read_ledger(run.path, required=("segment", "samples_to", "reason", "digest")):
        recorded[line.samples_to, f"segment {line.segment} ({line.reason})"] = line.digest

    for checkpoint in committed_checkpoints(run):
        try:
            progress = read_progress(checkpoint.path)
            recorded[progress.samples_seen, checkpoint.path.name] = progress.digest.hex()
        except (OSError, ValueError):
            _log.warning("%s is damaged, so that it is left out", checkpoint.manifest)
    if not recorded:
        raise UserError(f"{run.path} has neither a finished segment nor a checkpoint yet; nothing to audit")
    return recorded


def sample_keys(samples: Iterable[tuple[int, int]]) -> Int64s:
    """One number for each (shard number, ordinal), sorted, without repeats."""
    return np.unique(np.array([shard << _ORDINAL_BITS | ordinal for shard, ordinal in samples], np.int64))


def expected_order(order: Mixture, bad: Int64s, start: int, stop: int, *, workers: int = 1) -> Expected:
    """Return what the positions from `start` to `stop` (multiples of the number of lanes) must have read.

    Args:
        bad: sample_keys of the samples that could not be used.
        workers: processes that share the lanes.
    """
    one_lane = partial(_lane_order, order, bad, start // order.lanes, stop // order.lanes)
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            parts = list(pool.map(one_lane, range(order.lanes), chunksize=-(-order.lanes // (4 * workers))))
    else:
        parts = [one_lane(lane) for lane in range(order.lanes)]
    digest = sum((part.digest for part in parts), OrderDigest())
    return Expected(digest, sum(part.replaced for part in parts))


def _lane_order(order: Mixture, bad_keys: Int64s, first: int, last: int, lane: int) -> Expected:
    """The samples number first..last of one lane."""
    digest = OrderDigest()
    replaced = 0
    for strand in order.strands(lane, first, last):
        for number, found in _stretches(strand):
            used, bad = _with_replacements(strand.order.window, bad_keys, found)
            low, high = max(strand.first - number, 0), min(strand.stop - number, len(found.shards))
            positions = strand.positions(number + np.arange(low, high, dtype=np.int64))
            digest += lanes.digest(positions, used.shards[low:high], used.ordinals[low:high])
            replaced += int(bad[low:high].sum())
    return Expected(digest, replaced)


def _stretches(strand: Strand) -> Iterator[tuple[int, Samples]]:
    """Yield (number of the first sample, samples) of whole windows that cover a strand."""
    order = strand.order
    size = order.lane_size(strand.lane)
    windows_at_once = max(1, _SAMPLES_AT_ONCE // order.window)
    number = strand.first
    while number < strand.stop:
        epoch, inside = divmod(number, size)
        window = inside // order.window
        windows_needed = -(-(strand.stop - epoch * size) // order.window)
        stop = min(window + windows_at_once, windows_needed, -(-size // order.window))
        yield epoch * size + window * order.window, order.order(strand.lane, epoch, window, stop)
        number = epoch * size + min(stop * order.window, size)


def _with_replacements(window_size: int, bad_keys: Int64s, found: Samples) -> tuple[Samples, np.ndarray]:
    """Put the next good sample of its window in the place of every bad one; also return which were bad."""
    keys = found.shards << _ORDINAL_BITS | found.ordinals
    # A lane is a range of the index, so that few of the run's bad samples can be its own.
    near = bad_keys[np.searchsorted(bad_keys, keys.min()) : np.searchsorted(bad_keys, keys.max(), "right")]
    bad = np.zeros(len(keys), dtype=bool)
    if len(near):
        bad = near[np.minimum(np.searchsorted(near, keys), len(near) - 1)] == keys
    if not bad.any():
        return found, bad
    places, good = np.flatnonzero(bad), np.append(np.flatnonzero(~bad), len(bad))
    low = places // window_size * window_size
    stand_ins = good[np.searchsorted(good, places)]
    behind = stand_ins >= np.minimum(low + window_size, len(bad))
    stand_ins[behind] = good[np.searchsorted(good, low[behind])]  # round to the window's first good sample
    # Training cannot pass a window without a good sample, so that none is part of a finished stretch.
    stand_ins = np.minimum(stand_ins, len(bad) - 1)
    shards, ordinals = found.shards.copy(), found.ordinals.copy()
    shards[places], ordinals[places] = found.shards[stand_ins], found.ordinals[stand_ins]
    return Samples(shards, ordinals), bad
