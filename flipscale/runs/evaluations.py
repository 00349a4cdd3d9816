"""evaluations.jsonl: one line per evaluation during training, with its scores or why it failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flipscale import jsonl
from flipscale.errors import UserError
from flipscale.runs.directory import RunDirectory


@dataclass(frozen=True)
class RecordedEvaluation:
    """An evaluation during training.

    Attributes:
        samples_seen: Samples that the model had seen.
        error: Why the evaluation failed; None if it succeeded.
        document: The whole line: scores in the form that the evaluation package defines, seconds and time.
    """

    samples_seen: int
    error: str | None
    document: Mapping[str, Any]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> RecordedEvaluation:
        """Read a line, which must have an integer `samples_seen`."""
        samples_seen = record["samples_seen"]
        error = str(record["error"]) if "error" in record else None
        return cls(samples_seen, error, record)


def append_evaluation(run: RunDirectory, evaluation: RecordedEvaluation) -> None:
    """Append a line; it is on disk when this returns."""
    jsonl.append(run.evaluations, [evaluation.document], durable=True)


def read_evaluations(run: Path) -> list[RecordedEvaluation]:
    """Return all evaluations during training, oldest first; an empty list if there are none.

    Raises:
        UserError: If a line is damaged.
    """
    path = RunDirectory(run).evaluations
    records = jsonl.read(path)
    for place, record in enumerate(records, 1):
        if type(record.get("samples_seen")) is not int:
            raise UserError(f"{path}, line {place} is damaged: it has no samples_seen; restore the file")
    return [RecordedEvaluation.from_record(record) for record in records]


def scan_evaluations(run: Path) -> Iterator[RecordedEvaluation]:
    """Yield the evaluations that can be read, oldest first; never raises."""
    for record in jsonl.scan(RunDirectory(run).evaluations):
        if type(record.get("samples_seen")) is int:
            yield RecordedEvaluation.from_record(record)
