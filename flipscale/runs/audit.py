"""The proof of the sample order.

The audit recomputes a run's order digest from its job, its data index and its quarantine list.
It reads neither shards nor weights.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from flipscale.budget import Budget, epochs
from flipscale.child_process import die_with_parent
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

_SAMPLES_AT_ONCE = 1 << 19  # bounds the memory of a process
_ORDINAL_BITS = 40  # the low bits of a sample key; the shard number is above them
_log = logging.getLogger(__name__)

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Mark:
    """An order digest that the run recorded, next to the digest that it should have recorded.

    Attributes:
        samples_seen: Samples seen when the run recorded the digest.
        source: The ledger line or checkpoint that holds the digest.
        recorded: The recorded digest, 16 hexadecimal digits.
        expected: The recomputed digest, 16 hexadecimal digits.
    """

    samples_seen: int
    source: str
    recorded: str
    expected: str


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        samples_seen: Samples seen at the last mark.
        dataset_samples: Samples of the training set.
        epochs: Passes through the training set at the last mark.
        unusable: Number of samples in the quarantine list.
        replaced: Number of positions at which another sample of the window replaced an unusable one.
        marks: Every recorded digest, in the order of samples seen.
    """

    samples_seen: int
    dataset_samples: int
    epochs: float
    unusable: int
    replaced: int
    marks: tuple[Mark, ...]

    @property
    def proven(self) -> bool:
        """Whether every recorded digest is the recomputed one."""
        return all(mark.recorded == mark.expected for mark in self.marks)


@dataclass(frozen=True)
class Expected:
    """The reads that the sample order prescribes for a range of positions.

    Attributes:
        digest: Order digest of the range.
        replaced: Number of positions whose own sample is unusable, so that another of its window replaces it.
    """

    digest: OrderDigest
    replaced: int


def audit(run: RunDirectory, *, workers: int = 1) -> AuditReport:
    """Recompute the digest at every ledger line and checkpoint of a run from its directory.

    Args:
        run: The run.
        workers: Number of processes that share the lanes.

    Raises:
        UserError: If the run has recorded nothing yet, or if a record is damaged.
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

    # The digest is a sum, so that each mark adds only the range since the mark before.
    marks: list[Mark] = []
    total = OrderDigest()
    start = 0
    replaced = 0
    for (stop, source), digest in sorted(recorded.items()):
        if stop > start:
            part = expected_order(order, bad, start, stop, workers=workers)
            total += part.digest
            replaced += part.replaced
            start = stop
        marks.append(Mark(stop, source, digest, total.hex()))

    return AuditReport(start, order.samples, epochs(start, order.samples), len(bad), replaced, tuple(marks))


def _recorded(run: RunDirectory) -> dict[tuple[int, str], str]:
    """Return the digests that the run recorded, by the samples seen and the name of the record.

    Raises:
        UserError: If the ledger is damaged, or if there is neither a ledger line nor a checkpoint.
    """
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
    """Return one key per sample.

    Args:
        samples: (shard number, ordinal) of each sample.

    Returns:
        int64 array of shape (n,), sorted, without repeats.
    """
    return np.unique(np.array([shard << _ORDINAL_BITS | ordinal for shard, ordinal in samples], np.int64))


def expected_order(order: Mixture, bad: Int64s, start: int, stop: int, *, workers: int = 1) -> Expected:
    """Return what the sample order prescribes for a range of positions.

    Args:
        order: The sample order of the run.
        bad: `sample_keys` of the samples that could not be used.
        start: First position, a multiple of the number of lanes.
        stop: End of the range (exclusive), a multiple of the number of lanes.
        workers: Number of processes that share the lanes.
    """
    one_lane = partial(_lane_order, order, bad, start // order.lanes, stop // order.lanes)
    if workers > 1:
        with ProcessPoolExecutor(workers, None, die_with_parent, (os.getpid(),)) as pool:
            parts = list(pool.map(one_lane, range(order.lanes), chunksize=-(-order.lanes // (4 * workers))))
    else:
        parts = [one_lane(lane) for lane in range(order.lanes)]

    digest = sum((part.digest for part in parts), OrderDigest())
    return Expected(digest, sum(part.replaced for part in parts))


def _lane_order(order: Mixture, bad_keys: Int64s, first: int, last: int, lane: int) -> Expected:
    """Return what the order prescribes for the samples number `first` to `last` (exclusive) of one lane."""
    digest = OrderDigest()
    replaced = 0

    for strand in order.strands(lane, first, last):
        for number, samples in _whole_windows(strand):
            used, bad = _with_replacements(strand.order.window, bad_keys, samples)

            # Replacement needs whole windows; only the strand's own samples count.
            low = max(strand.first - number, 0)
            high = min(strand.stop - number, len(samples.shards))
            positions = strand.positions(number + np.arange(low, high, dtype=np.int64))
            digest += lanes.digest(positions, used.shards[low:high], used.ordinals[low:high])
            replaced += int(bad[low:high].sum())

    return Expected(digest, replaced)


def _whole_windows(strand: Strand) -> Iterator[tuple[int, Samples]]:
    """Yield whole windows that cover a strand: the number of the first sample, and the samples."""
    order = strand.order
    size = order.lane_size(strand.lane)
    windows_at_once = max(1, _SAMPLES_AT_ONCE // order.window)

    number = strand.first
    while number < strand.stop:
        epoch, inside = divmod(number, size)
        window = inside // order.window
        # Samples of one epoch only: the next one has another permutation.
        windows_needed = -(-(strand.stop - epoch * size) // order.window)
        stop = min(window + windows_at_once, windows_needed, -(-size // order.window))
        yield epoch * size + window * order.window, order.order(strand.lane, epoch, window, stop)
        number = epoch * size + min(stop * order.window, size)


def _with_replacements(window_size: int, bad_keys: Int64s, own: Samples) -> tuple[Samples, Bools]:
    """Replace every bad sample by the next good one of its window.

    Args:
        window_size: Samples per window.
        bad_keys: `sample_keys` of all bad samples of the run.
        own: The samples that the order prescribes, in whole windows.

    Returns:
        The samples that were used, and for each of them whether its own sample was bad.
    """
    keys = own.shards << _ORDINAL_BITS | own.ordinals
    # A lane is a range of the index, so that few of the run's bad samples can be in it.
    near = bad_keys[np.searchsorted(bad_keys, keys.min()) : np.searchsorted(bad_keys, keys.max(), "right")]
    bad = np.zeros(len(keys), dtype=bool)
    if len(near):
        bad = near[np.minimum(np.searchsorted(near, keys), len(near) - 1)] == keys
    if not bad.any():
        return own, bad

    places = np.flatnonzero(bad)
    good = np.append(np.flatnonzero(~bad), len(bad))  # the end is a sentinel for the search
    window_start = places // window_size * window_size

    # The next good sample; past the end of the window, the search wraps to its first good sample.
    used = good[np.searchsorted(good, places)]
    outside = used >= np.minimum(window_start + window_size, len(bad))
    used[outside] = good[np.searchsorted(good, window_start[outside])]
    # Training cannot pass a window without a good sample, so that no finished range contains one.
    used = np.minimum(used, len(bad) - 1)

    shards = own.shards.copy()
    shards[places] = own.shards[used]
    ordinals = own.ordinals.copy()
    ordinals[places] = own.ordinals[used]
    return Samples(shards, ordinals), bad
