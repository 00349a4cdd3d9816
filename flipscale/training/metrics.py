"""metrics.jsonl and TensorBoard: one line a log step, continued seamlessly after a restart."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flipscale import jsonl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Fields that depend on the machine and the hour; all others repeat bit by bit when steps are replayed.
TIMING_FIELDS = frozenset({"time", "images_per_second", "data_wait_fraction", "peak_memory_gb"})


class MetricsLog:
    """Writes the metrics of a run; only the leading process has one."""

    def __init__(self, run: Path, samples_seen: int, *, tensorboard: bool) -> None:
        """Continue the log of `run` at `samples_seen`: later lines are of steps that will be replayed."""
        self._path = run / "metrics.jsonl"
        jsonl.keep(self._path, lambda record: record["samples"] <= samples_seen)
        self._board: SummaryWriter | None = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=samples_seen)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; `samples` (seen so far) is its place on TensorBoard's axis."""
        jsonl.append(self._path, [record])
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name not in ("samples", "time"):
                    self._board.add_scalar(f"train/{name}", value, record["samples"])

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All records of a run, oldest first."""
    return jsonl.read(run / "metrics.jsonl")
