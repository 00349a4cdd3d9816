"""The metrics of a run as columns, and fewer points of them that look the same."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flipscale import jsonl

Floats = npt.NDArray[np.float64]
BUCKETS = 300  # parts of a curve; each keeps its first, lowest, highest and last point


@dataclass(frozen=True)
class Series:
    """All log lines of a run; NaN where a line has no number."""

    samples: Floats  # seen at the end of the step
    phase: npt.NDArray[np.int64]  # number of its name in `phases`
    phases: tuple[str, ...]
    values: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.samples)

    def curve(self, name: str, phase: int) -> tuple[Floats, Floats]:
        """Samples and values of one phase, thinned, without those that are no finite number."""
        values = self.values[name]
        chosen = (self.phase == phase) & np.isfinite(values)
        samples, values = self.samples[chosen], values[chosen]
        kept = thinned(values)
        return samples[kept], values[kept]


def read_series(path: Path, names: Sequence[str]) -> Series:
    """Read the columns `names` of metrics.jsonl; damaged lines are left out."""
    samples, phase = array("d"), array("q")
    columns = {name: array("d") for name in names}
    phases: dict[str, int] = {}
    for record in jsonl.scan(path):
        seen = record.get("samples")
        if not isinstance(seen, int):
            continue
        samples.append(seen)
        phase.append(phases.setdefault(str(record.get("phase", "")), len(phases)))
        for name, column in columns.items():
            value = record.get(name)
            column.append(value if isinstance(value, (int, float)) else np.nan)
    return Series(
        np.array(samples, dtype=np.float64),
        np.array(phase, dtype=np.int64),
        tuple(phases),
        {name: np.array(column, dtype=np.float64) for name, column in columns.items()},
    )


def thinned(values: Floats, buckets: int = BUCKETS) -> npt.NDArray[np.int64]:
    """Indices of at most 4 x `buckets` values, ascending: of each bucket the first, lowest, highest, last."""
    count = len(values)
    if count <= 4 * buckets:
        return np.arange(count)
    edges = np.linspace(0, count, buckets + 1).astype(np.int64)
    kept: set[int] = set()
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = values[start:stop]
        kept |= {start, start + int(part.argmin()), start + int(part.argmax()), stop - 1}
    return np.array(sorted(kept), dtype=np.int64)
