"""How far a run is: the whole state of data and schedule between two starts."""

from __future__ import annotations

from dataclasses import dataclass

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Progress:
    """Stored with every checkpoint and ledger line."""

    samples_seen: int = 0
    digest: int = 0  # order digest of all samples seen, modulo 2**64
    skipped_steps: int = 0  # steps whose gradient was not finite; their samples count as seen
    optimizer_steps: int = 0  # updates since the optimizer was last fresh

    def after(self, samples: int, digest: int) -> Progress:
        """Progress after a step over `samples` samples."""
        return Progress(
            self.samples_seen + samples,
            (self.digest + digest) & _MASK64,
            self.skipped_steps,
            self.optimizer_steps,
        )
