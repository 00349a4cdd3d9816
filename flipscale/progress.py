"""How far a run is: the whole state of data and schedule between two starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flipscale.order_digest import ContentDigest, OrderDigest


@dataclass(frozen=True)
class Progress:
    """The progress of a run; every checkpoint stores it.

    Attributes:
        samples_seen: Samples trained since the start of the run.
        digest: Order digest of all samples seen.
        skipped_steps: Steps whose gradient was not finite. Their samples count as seen.
        optimizer_steps: Updates since the optimizer was last fresh.
        content: Content digest of all samples seen; None for a run that began without one (version 0.2).
    """

    samples_seen: int = 0
    digest: OrderDigest = field(default_factory=OrderDigest)
    skipped_steps: int = 0
    optimizer_steps: int = 0
    content: ContentDigest | None = None

    @classmethod
    def of_new_run(cls) -> Progress:
        """Return the progress of a run that has not begun."""
        return cls(content=ContentDigest())

    @property
    def content_hex(self) -> str:
        """The content digest as files show it; empty without one."""
        return "" if self.content is None else self.content.hex()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Progress:
        """Return the progress that `as_record` wrote.

        Raises:
            TypeError: If the record has other keys, or a digest is not a number.
        """
        values: dict[str, Any] = {**record, "digest": OrderDigest(record.get("digest", 0))}
        if "content" in record:
            values["content"] = ContentDigest(record["content"])
        return cls(**values)

    def as_record(self) -> dict[str, int]:
        """Return the fields as a manifest stores them; digests are unsigned 64-bit integers."""
        record: dict[str, Any] = asdict(self) | {"digest": self.digest.value}
        content = record.pop("content")
        return record if content is None else record | {"content": content["value"]}

    def after(self, samples: int, digest: OrderDigest, content: ContentDigest) -> Progress:
        """Return the progress after a step.

        Args:
            samples: Samples of the step, over all processes.
            digest: Order digest of these samples.
            content: Their content digest.
        """
        return replace(
            self,
            samples_seen=self.samples_seen + samples,
            digest=self.digest + digest,
            content=None if self.content is None else self.content + content,
        )
