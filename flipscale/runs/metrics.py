"""metrics.jsonl, and the log of a run: metrics, evaluations and TensorBoard, which every start continues."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from flipscale import jsonl
from flipscale.runs.directory import RunDirectory
from flipscale.runs.evaluations import RecordedEvaluation, append_evaluation, read_evaluations
from flipscale.runs.records import Record, integer, text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Fields that depend on the machine and the time of day. When steps are replayed, all others are the same to
# the bit on a CPU, and on GPUs if the job is deterministic; else GPUs repeat counts, rates and digests only.
TIMING_FIELDS = frozenset(
    {"time", "seconds", "images_per_second", "tflops", "mfu", "data_wait_fraction", "peak_memory_gb"}
)
_log = logging.getLogger(__name__)
_OWN_FIELDS = frozenset({"samples", "step", "phase", "digest", "content"})


@dataclass(frozen=True)
class MetricsLine:
    """One line of metrics.jsonl, at the end of a step.

    Attributes:
        samples: Samples seen.
        step: Number of steps done in the run.
        phase: Name of the phase.
        scalars: Results of the step by name: `lr`, `loss`, `grad_norm`, `skipped_steps` and others.
        digest: Order digest of all samples seen, 16 hexadecimal digits.
        timing: Values of TIMING_FIELDS by name; `peak_memory_gb` is None on a CPU.
        content: Content digest of all samples seen; empty for a run that has none.
    """

    samples: int
    step: int
    phase: str
    scalars: Mapping[str, float]
    digest: str
    timing: Mapping[str, float | None]
    content: str = ""

    @classmethod
    def from_record(cls, record: Record) -> MetricsLine:
        """Read a line of any version: missing numbers are 0, missing strings are empty."""
        scalars: dict[str, float] = {}
        timing: dict[str, float | None] = {}
        for name, value in record.items():
            if isinstance(value, (int, float)) and name not in _OWN_FIELDS:
                (timing if name in TIMING_FIELDS else scalars)[name] = value
        return cls(
            samples=integer(record, "samples"),
            step=integer(record, "step"),
            phase=text(record, "phase"),
            scalars=scalars,
            digest=text(record, "digest"),
            timing=timing,
            content=text(record, "content"),
        )

    def column(self, name: str) -> float:
        """Return the scalar or timing value `name` as it was written; NaN if the line has none."""
        value = self.scalars.get(name, self.timing.get(name))
        return math.nan if value is None else value

    def finite(self, name: str) -> float:
        """Return the scalar or timing value `name`; 0.0 if the line has no finite one."""
        value = self.column(name)
        return float(value) if math.isfinite(value) else 0.0

    def to_record(self) -> dict[str, object]:
        """Return the line as it is written."""
        return {
            "samples": self.samples,
            "step": self.step,
            "phase": self.phase,
            **self.scalars,
            "digest": self.digest,
            **({"content": self.content} if self.content else {}),
            **self.timing,
        }


class MetricsLog:
    """Writes the metrics of a run; only the leading process has one."""

    def __init__(self, run: Path, samples_seen: int, *, tensorboard: bool) -> None:
        """Continue the log of `run`.

        Args:
            run: The run directory.
            samples_seen: Progress of the checkpoint; later lines are dropped, because their steps will be
                replayed.
            tensorboard: Whether to write TensorBoard's files as well.
        """
        self._run = RunDirectory(run)
        _keep_until(self._run.metrics, "samples", samples_seen)
        _keep_until(self._run.evaluations, "samples_seen", samples_seen)

        self._board: SummaryWriter | None = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=samples_seen)

    def write(self, line: MetricsLine) -> None:
        """Append a line; its `samples` are its place on TensorBoard's axis."""
        jsonl.append(self._run.metrics, [line.to_record()])
        if self._board is not None:
            for name, value in line.to_record().items():
                if isinstance(value, (int, float)) and name not in ("samples", "time"):
                    _add_scalar(self._board, f"train/{name}", value, line.samples)

    def write_evaluation(self, evaluation: RecordedEvaluation) -> None:
        """Append an evaluation; it is on disk when this returns."""
        append_evaluation(self._run, evaluation)
        if self._board is not None:
            for name, value in _scores(evaluation.document, "eval"):
                _add_scalar(self._board, name, value, evaluation.samples_seen)

    def evaluated(self, samples_seen: int) -> bool:
        """Return whether the evaluation at `samples_seen` is recorded."""
        return any(recorded.samples_seen == samples_seen for recorded in read_evaluations(self._run.path))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()


def read_metrics(run: Path) -> list[MetricsLine]:
    """Return all lines of a run, oldest first; an empty list if there are none.

    Raises:
        UserError: If a line is damaged.
    """
    return [MetricsLine.from_record(record) for record in jsonl.read(RunDirectory(run).metrics)]


def scan_metrics(run: Path) -> Iterator[MetricsLine]:
    """Yield the lines that have a number of samples, oldest first; never raises."""
    for record in jsonl.scan(RunDirectory(run).metrics):
        if isinstance(record.get("samples"), int):
            yield MetricsLine.from_record(record)


def tail_metrics(run: Path, limit: int) -> list[MetricsLine]:
    """Return those of the last `limit` bytes of the file, oldest first; never raises."""
    records = jsonl.tail(RunDirectory(run).metrics, limit)
    return [MetricsLine.from_record(record) for record in records if isinstance(record.get("samples"), int)]


def _keep_until(path: Path, key: str, samples_seen: int) -> None:
    """Drop the lines of a file behind `samples_seen`; a file with damaged lines is set aside first.

    A hole in a curve does not make a run wrong, so that damaged lines do not keep it from training.
    """
    dropped, aside = jsonl.repair(path, lambda record: type(record.get(key)) is int)
    if aside is not None:
        _log.warning("%d damaged lines of %s are left out; the file is now %s", dropped, path, aside.name)
    jsonl.keep(path, lambda record: record[key] <= samples_seen)


def _add_scalar(board: SummaryWriter, name: str, value: float, samples: int) -> None:
    """Add one value to TensorBoard's files, at `samples` on its axis."""
    board.add_scalar(name, value, samples)


def _scores(document: Mapping[str, object], prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a document by their path in it, such as eval/zero_shot/imagenet/top1."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _scores(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)) and name not in ("format", "samples_seen", "time"):
            yield f"{prefix}/{name}", value
