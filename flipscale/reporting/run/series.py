"""The metrics of a run as columns, and thinned curves that look the same."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flipscale.runs.metrics import scan_metrics

Floats = npt.NDArray[np.float64]
BUCKETS = 300
"""Parts of a thinned curve; each keeps its first, lowest, highest and last point."""

_NEWEST = 1000  # log lines among which the last value of a column is looked for


@dataclass(frozen=True)
class Series:
    """All log lines of a run, N of them."""

    samples: Floats
    """The samples seen at the end of each step, (N,)."""
    phase: npt.NDArray[np.int64]
    """The place of each line's phase in `phases`, (N,)."""
    phases: tuple[str, ...]
    """The names of the phases."""
    values: dict[str, Floats]
    """The columns by name, (N,) each; NaN if a line has no number."""

    def __len__(self) -> int:
        """Return the number of log lines."""
        return len(self.samples)

    def curve(self, name: str, phase: int) -> tuple[Floats, Floats]:
        """Return samples and values of one phase, thinned and without values that are not finite.

        Args:
            name: Name of the column.
            phase: Place of the phase in `phases`.
        """
        values = self.values[name]
        chosen = (self.phase == phase) & np.isfinite(values)

        samples = self.samples[chosen]
        values = values[chosen]
        kept = thinned(values)
        return samples[kept], values[kept]

    def last(self, name: str) -> float | None:
        """Return the last finite value of a column, or None if the newest 1,000 lines have none."""
        values: list[float] = self.values[name][-_NEWEST:].tolist()
        return next((value for value in reversed(values) if math.isfinite(value)), None)


def read_series(run: Path, names: Sequence[str]) -> Series:
    """Read columns of the metrics of a run.

    Args:
        run: The run directory; one without metrics gives an empty series.
        names: Names of the columns: scalars and timing values of `MetricsLine`.

    Returns:
        The columns, without damaged lines and lines that have no number of samples.
    """
    samples = array("d")
    phase = array("q")
    columns = {name: array("d") for name in names}
    phases: dict[str, int] = {}

    for line in scan_metrics(run):
        samples.append(line.samples)
        phase.append(phases.setdefault(line.phase, len(phases)))
        for name, column in columns.items():
            column.append(line.column(name))

    return Series(
        np.array(samples, dtype=np.float64),
        np.array(phase, dtype=np.int64),
        tuple(phases),
        {name: np.array(column, dtype=np.float64) for name, column in columns.items()},
    )


def thinned(values: Floats, buckets: int = BUCKETS) -> npt.NDArray[np.int64]:
    """Choose the points of a curve that keep its shape.

    Args:
        values: The values of the curve, (N,).
        buckets: Number of parts into which the curve is divided.

    Returns:
        Ascending indices of at most 4 x `buckets` values: the first, lowest, highest and last of each part.
    """
    count = len(values)
    if count <= 4 * buckets:
        return np.arange(count)

    edges = np.linspace(0, count, buckets + 1).astype(np.int64)
    kept: set[int] = set()
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = values[start:stop]
        kept |= {start, start + int(part.argmin()), start + int(part.argmax()), stop - 1}

    return np.array(sorted(kept), dtype=np.int64)
