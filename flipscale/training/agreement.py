"""The exchange of small facts after a step, so that all processes take the same decisions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from flipscale.config import Data
from flipscale.data.quarantine import BadRecord, Quarantine
from flipscale.data.samples.stream import Batch
from flipscale.orchestration.segments.segment import Segment
from flipscale.orchestration.segments.stop_requests import REASONS, agreed_reason
from flipscale.order_digest import ContentDigest, OrderDigest


class Decision(NamedTuple):
    """The decision of all processes after a step.

    Attributes:
        digest: Order digest of the samples of all processes in this step.
        content: Their content digest.
        reason: The reason to stop, one of REASONS, or None.
        save: Whether a checkpoint is due.
    """

    digest: OrderDigest
    content: ContentDigest
    reason: str | None
    save: bool


class Agreement:
    """Exchanges the facts of a step between all processes.

    Args:
        data: The `data` block of the job.
        segment: This start of the run.
        damaged: The records of damaged shards, for the quarantine.
    """

    def __init__(self, data: Data, segment: Segment, damaged: Iterable[BadRecord]) -> None:
        self._max_bad_fraction = data.max_bad_fraction
        self._world = segment.world
        self._stop = segment.stop
        # Only the leading process writes the quarantine.
        self._quarantine = Quarantine(segment.run.quarantine) if segment.world.leads else None
        if self._quarantine is not None:
            self._quarantine.add(damaged)

    def reason_to_stop(self) -> str | None:
        """Return the reason to stop that any process has; all processes call it together."""
        return agreed_reason(self._world.sum(self._stop.counts()))

    def reach(self, batch: Batch, *, save_due: bool) -> Decision:
        """Exchange the facts of a step; all processes call it together.

        Bad samples are in the quarantine before the call returns, and thus before any checkpoint that counts
        them as replaced.

        Args:
            batch: The batch of the step.
            save_due: Whether a checkpoint is due; only the leading process's word counts.

        Raises:
            UserError: If a larger share of the samples is bad than the job allows.
        """
        save_due = self._world.leads and save_due
        digests = [batch.digest.as_int64(), batch.content.as_int64()]
        facts = [*digests, len(batch.bad), int(save_due), *self._stop.counts()]
        digest, content, bad, saves, *requests = self._world.sum(facts)

        if bad:
            self._record(batch)
        reason = agreed_reason(requests[: len(REASONS)])
        return Decision(OrderDigest(digest), ContentDigest(content), reason, saves > 0)

    def _record(self, batch: Batch) -> None:
        quarantine = self._quarantine
        records = self._world.gather(batch.bad)
        if quarantine is not None:
            quarantine.add(record for part in records for record in part)

        seen = batch.step.stop
        limit = self._max_bad_fraction
        self._world.lead(lambda: quarantine and quarantine.judge(seen, limit))
