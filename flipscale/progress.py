"""How far a run is: the whole state of data and schedule between two starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flipscale.order_digest import OrderDigest


@dataclass(frozen=True)
class Progress:
    """The progress of a run; every checkpoint stores it.

    Attributes:
        samples_seen: Samples trained since the start of the run.
        digest: Order digest of all samples seen.
        skipped_steps: Steps whose gradient was not finite. Their samples count as seen.
        optimizer_steps: Updates since the optimizer was last fresh.
    """

    samples_seen: int = 0
    digest: OrderDigest = field(default_factory=OrderDigest)
    skipped_steps: int = 0
    optimizer_steps: int = 0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Progress:
        """Return the progress that `as_record` wrote.

        Raises:
            TypeError: If the record has other keys, or the digest is not a number.
        """
        values: dict[str, Any] = {**record, "digest": OrderDigest(record.get("digest", 0))}
        return cls(**values)

    def as_record(self) -> dict[str, int]:
        """Return the fields as a manifest stores them; the digest is an unsigned 64-bit integer."""
        return asdict(self) | {"digest": self.digest.value}

    def after(self, samples: int, digest: OrderDigest) -> Progress:
        """Return the progress after a step.

        Args:
            samples: Samples of the step, over all processes.
            digest: Order digest of these samples.
        """
        return replace(self, samples_seen=self.samples_seen + samples, digest=self.digest + digest)
