"""The evaluations that a run recorded while it trained, in documents of any version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flipscale import jsonl
from flipscale.runs.directory import RunDirectory


@dataclass(frozen=True)
class RecordedEvaluation:
    """A line of evaluations.jsonl."""

    samples_seen: int
    document: Mapping[str, object]
    """The whole line; `flipscale.evaluation.scores` reads the scores in it."""

    @property
    def error(self) -> str | None:
        """The reason why the evaluation failed, or None if it succeeded."""
        return str(self.document["error"]) if "error" in self.document else None


def read_evaluations(run: RunDirectory) -> list[RecordedEvaluation]:
    """Return the recorded evaluations, oldest first; damaged lines are left out."""
    evaluations: list[RecordedEvaluation] = []
    for record in jsonl.scan(run.path / "evaluations.jsonl"):
        samples = record.get("samples_seen")
        if isinstance(samples, int):
            evaluations.append(RecordedEvaluation(samples, record))

    return evaluations
