"""The exchange of small facts between the steps, so that all processes take the same decisions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from flipscale.config import Data
from flipscale.data.quarantine import BadRecord, Quarantine
from flipscale.data.samples.stream import Batch
from flipscale.distributed.pending_sum import PendingSum
from flipscale.orchestration.segments.segment import Segment
from flipscale.orchestration.segments.stop_requests import agreed_reason
from flipscale.order_digest import ContentDigest, OrderDigest


class Decision(NamedTuple):
    """The decision of all processes, by the facts of no, one or two steps.

    Attributes:
        samples: Samples of all processes in these steps.
        digest: Order digest of these samples.
        content: Their content digest.
        reason: The reason to stop, one of REASONS, or None.
        save: Whether a checkpoint is due.
    """

    samples: int = 0
    digest: OrderDigest = OrderDigest()
    content: ContentDigest = ContentDigest()
    reason: str | None = None
    save: bool = False

    def followed_by(self, later: Decision) -> Decision:
        """Return the decision by the facts of these steps and of the step after them."""
        return Decision(
            self.samples + later.samples,
            self.digest + later.digest,
            self.content + later.content,
            later.reason or self.reason,  # a process keeps its requests
            self.save or later.save,
        )


class _PendingFacts(NamedTuple):
    """The facts of a step that are under way; not its batch, whose images would take memory."""

    samples: int
    samples_seen: int
    bad: list[BadRecord]  # of this process
    sums: PendingSum


class Agreement:
    """Exchanges the facts of each step between all processes, while the next step is computed.

    The devices have work meanwhile. The hops of the collective from host to host, and a host that is late by
    less than a step, thus delay nothing. The facts of at most one step are under way.

    Args:
        data: The `data` block of the job.
        segment: This start of the run.
        damaged: The records of damaged shards, for the quarantine.
    """

    def __init__(self, data: Data, segment: Segment, damaged: Iterable[BadRecord]) -> None:
        self._max_bad_fraction = data.max_bad_fraction
        self._world = segment.world
        self._stop = segment.stop
        self._pending: _PendingFacts | None = None
        self._bad: list[BadRecord] = []  # of this process, not yet in the quarantine
        self._all_bad = 0  # their number in all processes
        self._samples_seen = 0
        # Only the leading process writes the quarantine.
        self._quarantine = Quarantine(segment.run.quarantine) if segment.world.leads else None
        if self._quarantine is not None:
            self._quarantine.add(damaged)

    def reason_to_stop(self) -> str | None:
        """Return the reason to stop that any process has; all processes call it together."""
        return agreed_reason(self._world.sum(self._stop.counts()))

    def reach(self, batch: Batch, *, save_due: bool, at_once: bool) -> Decision:
        """Exchange the facts of a step that is queued; all processes call it together.

        The decision is by the facts of the step before; those of this step are under way when the call
        returns. The facts of this step count as well, and no facts are under way, if `at_once` is true, or if
        the step before asks for a save or a stop.

        Bad samples come into the quarantine when facts of the step itself are waited for, and thus before any
        checkpoint that counts them as replaced, and before metrics. Their records are of any size, so that
        all processes wait for them.

        Args:
            batch: The batch of the step.
            save_due: Whether a checkpoint is due; only the leading process's word counts.
            at_once: Whether to wait for the facts of this step; the same in all processes.

        Raises:
            UserError: If a larger share of the samples is bad than the job allows.
        """
        decision = self._settle()
        self._pending = self._send(batch, save_due=self._world.leads and save_due)

        if at_once or decision.save or decision.reason:
            decision = decision.followed_by(self._settle())
            self._record()
        return decision

    def _send(self, batch: Batch, *, save_due: bool) -> _PendingFacts:
        digests = [batch.digest.as_int64(), batch.content.as_int64()]
        facts = [*digests, len(batch.bad), int(save_due), *self._stop.counts()]
        return _PendingFacts(batch.step.size, batch.step.stop, batch.bad, self._world.start_sum(facts))

    def _settle(self) -> Decision:
        """Wait for the facts that are under way, if there are any, and return the decision by them."""
        if self._pending is None:
            return Decision()

        facts = self._pending
        self._pending = None
        digest, content, bad, saves, *requests = facts.sums.wait()

        self._bad += facts.bad
        self._all_bad += bad
        self._samples_seen = facts.samples_seen
        reason = agreed_reason(requests)
        return Decision(facts.samples, OrderDigest(digest), ContentDigest(content), reason, saves > 0)

    def _record(self) -> None:
        if not self._all_bad:
            return

        quarantine = self._quarantine
        records = self._world.gather(self._bad)
        if quarantine is not None:
            quarantine.add(record for part in records for record in part)
        self._bad.clear()
        self._all_bad = 0

        seen, limit = self._samples_seen, self._max_bad_fraction
        self._world.lead(lambda: quarantine and quarantine.judge(seen, limit))
