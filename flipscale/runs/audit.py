"""The proof of the sample order and of the samples' content.

The audit recomputes a run's order digest from its job, its data index and its quarantine list, and its
content digest from the checksums of the index. It compares every place of the run directory that carries a
number or a digest with every other. It reads neither shards nor weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flipscale.budget import epochs
from flipscale.data.order.mixture import Mixture, job_sources
from flipscale.data.quarantine import read_quarantine
from flipscale.errors import UserError
from flipscale.order_digest import ContentDigest, OrderDigest
from flipscale.runs.content_proof import find_checksums
from flipscale.runs.contradictions import find_contradictions, find_gaps
from flipscale.runs.directory import RunDirectory
from flipscale.runs.expected_order import Expected, expected_orders, sample_keys
from flipscale.runs.recorded_run import RecordedRun, read_run

PROVES = (
    "this proves which samples were handed to the trainer, and in which order; it does not prove "
    "that the trainer "
    "used them rightly, nor that nobody forged all files together"
)
"""What an audit proves, and what it cannot."""


@dataclass(frozen=True)
class Mark:
    """An order digest that the run recorded, next to the digest that it should have recorded.

    Attributes:
        samples_seen: Samples seen when the run recorded the digest.
        source: The ledger line, checkpoint or metrics line that holds the digest.
        recorded: The recorded digest, 16 hexadecimal digits.
        expected: The recomputed digest, 16 hexadecimal digits.
        content: The recorded content digest; empty if there is none.
        expected_content: The recomputed content digest; empty if it cannot be recomputed.
    """

    samples_seen: int
    source: str
    recorded: str
    expected: str
    content: str = ""
    expected_content: str = ""

    @property
    def same_content(self) -> bool:
        """Whether the content digests are equal, or cannot be compared."""
        return "" in (self.content, self.expected_content) or self.content == self.expected_content

    @property
    def proven(self) -> bool:
        """Whether no digest differs."""
        return self.recorded == self.expected and self.same_content


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        samples_seen: Samples seen at the last ledger line or checkpoint.
        dataset_samples: Samples of the training set.
        epochs: Passes through the training set there.
        unusable: Number of samples in the quarantine list.
        replaced: Number of positions at which another sample of the window replaced an unusable one.
        marks: The recorded digests of ledger lines and checkpoints, in the order of samples seen, and the
            wrong ones of metrics lines.
        metrics_lines: Number of lines of metrics.jsonl whose digests were compared.
        contradictions: What files of the run say against each other, as sentences.
        gaps: What could not be compared, because a file is missing or damaged, as sentences.
        content: Whether the content digests are `equal` or `different`, or a key of `content_proof.PROVES`.
    """

    samples_seen: int
    dataset_samples: int
    epochs: float
    unusable: int
    replaced: int
    marks: tuple[Mark, ...]
    metrics_lines: int = 0
    contradictions: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    content: str = "not recorded"

    @property
    def proven(self) -> bool:
        """Whether every recorded digest is the recomputed one, and no file contradicts another."""
        return not self.contradictions and all(mark.proven for mark in self.marks)


@dataclass(frozen=True)
class _Recorded:
    """The recorded digests, 16 hexadecimal digits each, and their record."""

    samples_seen: int
    source: str
    digest: str
    content: str
    of_metrics: bool = False


def audit(run: RunDirectory, *, workers: int = 1) -> AuditReport:
    """Recompute the digest at every ledger line, checkpoint and metrics line of a run, and compare its files.

    Args:
        run: The run.
        workers: Number of processes that share the lanes.

    Raises:
        UserError: If the run has recorded nothing yet, or if a record is damaged.
    """
    files = read_run(run)
    order = _order(files)
    recorded = _recorded(files)

    for mark in recorded:
        if not files.budget.is_boundary(mark.samples_seen):
            raise UserError(
                f"{mark.source} in {run.path} ends at {mark.samples_seen} samples, where no step of "
                "the job ends"
            )

    bad = sample_keys((record.shard, record.ordinal) for record in read_quarantine(run.quarantine))
    cuts = sorted({0, *(mark.samples_seen for mark in recorded)})
    checksums, content = find_checksums(files)
    parts = expected_orders(order, bad, cuts, checksums=checksums, workers=workers) if len(cuts) > 1 else []
    marks = _marks(recorded, cuts, parts)
    if content == "equal" and not all(mark.same_content for mark in marks):
        content = "different"

    end = max(mark.samples_seen for mark in recorded if not mark.of_metrics)
    shown = [
        mark for mark, found in zip(marks, recorded, strict=True) if not found.of_metrics or not mark.proven
    ]
    return AuditReport(
        samples_seen=end,
        dataset_samples=order.samples,
        epochs=epochs(end, order.samples),
        unusable=len(bad),
        replaced=sum(part.replaced for stop, part in zip(cuts[1:], parts, strict=True) if stop <= end),
        marks=tuple(shown),
        metrics_lines=len(files.metrics),
        contradictions=tuple(find_contradictions(files)),
        gaps=tuple(find_gaps(files)),
        content=content,
    )


def _marks(recorded: Sequence[_Recorded], cuts: Sequence[int], parts: Sequence[Expected]) -> list[Mark]:
    """Return what was recorded next to what should have been.

    Args:
        recorded: The recorded digests.
        cuts: The places of the records, from 0 on.
        parts: What the order prescribes between each two consecutive cuts.
    """
    # The digests are sums, so that each mark adds only the range since the mark before.
    order = OrderDigest()
    content = ContentDigest()
    expected = {0: (order.hex(), content.hex())}
    for stop, part in zip(cuts[1:], parts, strict=True):
        order += part.digest
        content += part.content or ContentDigest()
        expected[stop] = order.hex(), content.hex() if part.content is not None else ""

    return [
        Mark(
            m.samples_seen,
            m.source,
            m.digest,
            expected[m.samples_seen][0],
            m.content,
            expected[m.samples_seen][1],
        )
        for m in recorded
    ]


def _order(files: RecordedRun) -> Mixture:
    try:
        counts = [samples for _, samples in files.identity.shards]
        data = files.job.data
        sources = job_sources(data, files.identity.sources)
        return Mixture(counts, data.lanes, data.window, files.job.seed, sources, files.identity.turns)
    except ValueError:
        raise UserError(f"{files.run.index} is damaged; restore it") from None


def _recorded(files: RecordedRun) -> Sequence[_Recorded]:
    """Return the digests that the run recorded, sorted by the samples seen and the name of the record.

    Raises:
        UserError: If there is neither a ledger line nor a checkpoint.
    """
    recorded: list[_Recorded] = []
    for line in files.ledger:
        source = f"segment {line.segment} ({line.reason})"
        recorded.append(_Recorded(line.samples_to, source, line.digest, line.content))
    for (samples, name), manifest in files.manifests.items():
        progress = manifest.progress
        recorded.append(_Recorded(samples, name, progress.digest.hex(), progress.content_hex))
    if not recorded:
        raise UserError(
            f"{files.run.path} has neither a finished segment nor a checkpoint yet; nothing to audit"
        )

    for line in files.metrics:
        source = f"metrics.jsonl at step {line.step}"
        recorded.append(_Recorded(line.samples, source, line.digest, line.content, of_metrics=True))
    return sorted(recorded, key=lambda mark: (mark.samples_seen, mark.of_metrics, mark.source))
