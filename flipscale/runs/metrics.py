"""metrics.jsonl, evaluations.jsonl and TensorBoard, continued seamlessly after a restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flipscale import jsonl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Fields that depend on the machine and the hour; all others repeat bit by bit when steps are replayed.
TIMING_FIELDS = frozenset({"time", "seconds", "images_per_second", "data_wait_fraction", "peak_memory_gb"})


class MetricsLog:
    """Writes the metrics of a run; only the leading process has one."""

    def __init__(self, run: Path, samples_seen: int, *, tensorboard: bool) -> None:
        """Continue the log of `run` at `samples_seen`: later lines are of steps that will be replayed."""
        self._path = run / "metrics.jsonl"
        self._evaluations = run / "evaluations.jsonl"
        jsonl.keep(self._path, lambda record: record["samples"] <= samples_seen)
        jsonl.keep(self._evaluations, lambda record: record["samples_seen"] <= samples_seen)
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

    def write_evaluation(self, document: dict[str, Any]) -> None:
        """Append the document of an evaluation; on disk on return."""
        jsonl.append(self._evaluations, [document], durable=True)
        if self._board is not None:
            for name, value in _scores(document, "eval"):
                self._board.add_scalar(name, value, document["samples_seen"])

    def evaluated(self, samples_seen: int) -> bool:
        """Whether the evaluation at `samples_seen` is recorded."""
        return any(record["samples_seen"] == samples_seen for record in jsonl.read(self._evaluations))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()


def _scores(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """The numbers of a document, by their path in it: eval/zero_shot/imagenet/top1."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _scores(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)) and name not in ("format", "samples_seen", "time"):
            yield f"{prefix}/{name}", value


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """All evaluations made while training, oldest first."""
    return jsonl.read(run / "evaluations.jsonl")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All records of a run, oldest first."""
    return jsonl.read(run / "metrics.jsonl")
