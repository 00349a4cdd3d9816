"""All that a run directory tells, read once; what cannot be had is a sentence that says why."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flipscale import jsonl
from flipscale.config import Job
from flipscale.data.quarantine import kind
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import join_world
from flipscale.errors import StoppedEarly, UserError
from flipscale.evaluation.class_sets import rooted
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.nearest_captions import ExampleImage, NearestCaptions, examples, nearest_captions
from flipscale.interop.load_model import load_model
from flipscale.orchestration.status.liveness import SlurmView
from flipscale.orchestration.status.run_status import RunStatus, read_status
from flipscale.order_digest import OrderDigest
from flipscale.reporting.run.seen_samples import TrainingView, training_views
from flipscale.reporting.run.series import Series, read_series
from flipscale.runs.directory import RunDirectory, recorded_job

CURVES = (
    "loss",
    "lr",
    "logit_scale",
    "grad_norm",
    "images_per_second",
    "data_wait_fraction",
    "peak_memory_gb",
    "skipped_steps",
)
_VIEWS = 6  # of each phase
_RETRIEVED = 6  # images
_PICTURE_SIDE = 224  # pixels
_BAD_EXAMPLES = 20

T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointFacts:
    name: str
    samples: int
    written: float  # seconds since 1970
    bytes: int
    permanent: bool
    digest: str
    latest: bool


@dataclass(frozen=True)
class QuarantineFacts:
    count: int
    kinds: list[tuple[str, int]]  # most frequent first
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class RunMaterial:
    run: RunDirectory
    job: Job
    job_text: str
    status: RunStatus
    series: Series
    evaluations: list[dict[str, Any]]
    failed_evaluations: list[dict[str, Any]]
    checkpoints: list[CheckpointFacts]
    quarantine: QuarantineFacts
    views: list[TrainingView] | str
    retrieved: list[tuple[ExampleImage, NearestCaptions]] | str


def gather(run: RunDirectory, say: Callable[[str], None]) -> RunMaterial:
    """Read the run; `say` is told what takes its time. Raises UserError where the job cannot be read."""
    job = recorded_job(run)
    status = read_status(run.path, SlurmView())
    recorded = [record for record in jsonl.scan(run.path / "evaluations.jsonl") if _seen(record)]
    say("reading the metrics")
    series = read_series(run.path / "metrics.jsonl", CURVES)
    say("reading training samples")
    views = _or_why(lambda: training_views(run, job, status.samples, _VIEWS))
    return RunMaterial(
        run=run,
        job=job,
        job_text=run.job.read_text(encoding="utf-8"),
        status=status,
        series=series,
        evaluations=[record for record in recorded if "error" not in record],
        failed_evaluations=[record for record in recorded if "error" in record],
        checkpoints=_checkpoints(run),
        quarantine=_quarantine(run.quarantine),
        views=views,
        retrieved=_or_why(lambda: _retrieved(run, job, status, say)),
    )


def _seen(record: dict[str, Any]) -> bool:
    return isinstance(record.get("samples_seen"), int)


def _or_why(work: Callable[[], T]) -> T | str:
    """What `work` gives, or why it cannot (a GPU may be full): the page shows all the rest."""
    try:
        return work()
    except (UserError, StoppedEarly, OSError, RuntimeError) as error:
        return str(error).strip().partition("\n")[0]


def _retrieved(
    run: RunDirectory, job: Job, status: RunStatus, say: Callable[[str], None]
) -> list[tuple[ExampleImage, NearestCaptions]]:
    if not job.evaluation.retrieval:
        raise UserError("the job names no retrieval set: set evaluation.retrieval")
    if status.checkpoint is None:
        raise UserError("there is no checkpoint yet")
    shards = next(iter(rooted(job.evaluation).retrieval.values()))
    shown = examples(shards, _RETRIEVED, _PICTURE_SIDE)
    say("encoding retrieval examples with the newest checkpoint")
    world = join_world(Placement())
    trained = load_model(run.path, world)
    encoder = Encoder(trained.model, trained.tokenizer, trained.model.spec.vision.image_size, world)
    return list(zip(shown, nearest_captions(encoder, shards, _RETRIEVED), strict=False))


def _checkpoints(run: RunDirectory) -> list[CheckpointFacts]:
    """The committed checkpoints, oldest first; their files are not read."""
    latest = run.checkpoints / "LATEST"
    newest = latest.read_text().strip() if latest.is_file() else ""
    found: list[CheckpointFacts] = []
    for path in sorted(run.checkpoints.glob("samples_*/manifest.json")):
        try:
            manifest = json.loads(path.read_text())
            progress, files = manifest["progress"], manifest["files"].values()
            found.append(
                CheckpointFacts(
                    name=path.parent.name,
                    samples=int(progress["samples_seen"]),
                    written=path.stat().st_mtime,
                    bytes=sum(int(file["bytes"]) for file in files),
                    permanent=bool(manifest["permanent"]),
                    digest=OrderDigest(int(progress["digest"])).hex(),
                    latest=path.parent.name == newest,
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # being deleted, or damaged: `flipscale train` says which
    return found


def _quarantine(path: Path) -> QuarantineFacts:
    kinds: Counter[str] = Counter()
    shown: list[dict[str, Any]] = []
    for record in jsonl.scan(path):
        kinds[kind(str(record.get("reason", "")))] += 1
        if len(shown) < _BAD_EXAMPLES:
            shown.append(record)
    return QuarantineFacts(kinds.total(), kinds.most_common(), shown)


def last(values: Any) -> float | None:
    """The last finite number of a column."""
    found = [value for value in values[-1000:].tolist() if math.isfinite(value)]
    return found[-1] if found else None
