"""A trained model from wherever it lies: a run, one of its checkpoints, or an OpenCLIP directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flipscale.config import Job
from flipscale.data.text.tokenizer import Tokenizer, load_tokenizer
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.interop.mapping import StateDict
from flipscale.interop.openclip_directory import CONFIG
from flipscale.interop.openclip_import import import_openclip
from flipscale.models.flip import FLIP, build_model
from flipscale.models.of_job import checkpoint_spec, model_spec
from flipscale.models.presets import ModelSpec
from flipscale.order_digest import OrderDigest
from flipscale.runs import checkpoint
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.directory import RunDirectory


@dataclass(frozen=True)
class LoadedModel:
    """An fp32 model with its tokenizer; job, progress and data are None for an OpenCLIP directory."""

    model: FLIP
    tokenizer: Tokenizer
    job: Job | None = None
    samples_seen: int | None = None
    digest: OrderDigest | None = None
    data: dict[str, Any] | None = None


def is_model(path: Path) -> bool:
    """Whether `load_model` finds something there."""
    return any((path / name).is_file() for name in (CONFIG, "job.yaml", checkpoint.MANIFEST))


def load_model(path: Path, world: World) -> LoadedModel:
    """Load the newest checkpoint of a run, a checkpoint directory, or an OpenCLIP directory.

    All processes of `world` call it, and each has the whole model on its device. Raises UserError, on every
    process, where `path` is none of these, or a named checkpoint is damaged.
    """
    device = world.device
    if (path / CONFIG).is_file():
        return build_with_tokenizer(*import_openclip(path), path, device)
    if (path / "job.yaml").is_file():
        run = RunDirectory(path.resolve())
        found = world.lead(lambda: checkpoint.find(run.checkpoints))
        if found is None:
            raise UserError(f"{path} has no whole checkpoint yet; train it first")
    elif (path / checkpoint.MANIFEST).is_file():
        run = RunDirectory(path.resolve().parents[1])
        found = world.lead(lambda: _named(path))
    else:
        raise UserError(f"{path} is neither a run, nor a checkpoint, nor an OpenCLIP directory")
    return _from_checkpoint(run, found, device)


def build_with_tokenizer(
    spec: ModelSpec, state: StateDict, directory: Path | None, device: torch.device | str = "cpu"
) -> LoadedModel:
    """The model of OpenCLIP with these weights, and its tokenizer, whose files lie in `directory`, if any."""
    model = build_model(spec, device="meta").to_empty(device=device)
    model.load_state_dict(state)
    kind = "wordpiece" if spec.text.pool == "first" else "clip_bpe"
    vocab = str(directory) if kind == "wordpiece" and directory is not None else None
    return LoadedModel(model, load_tokenizer(kind, vocab, spec.text.context_length))


def _named(path: Path) -> Checkpoint:
    try:
        return checkpoint.read(path)
    except checkpoint.DamagedCheckpoint as damage:
        raise UserError(f"the checkpoint {path} is damaged: {damage}; name an older one") from None


def _from_checkpoint(run: RunDirectory, found: Checkpoint, device: torch.device) -> LoadedModel:
    job = Job.model_validate(found.job)
    source = job.data.tokenizer
    vocab = str(run.tokenizer) if source.kind == "wordpiece" else None
    tokenizer = load_tokenizer(source.kind, vocab, source.context_length)
    spec = checkpoint_spec(model_spec(job, tokenizer), job, found.progress.samples_seen)
    model = build_model(spec, device="meta").to_empty(device=device)
    if job.sharding.precision == "fp64":
        model.double()
    found.load({f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()})
    identity = json.loads(run.index.read_text())
    return LoadedModel(
        model.float(),
        tokenizer,
        job,
        found.progress.samples_seen,
        found.progress.digest,
        {"fingerprint": identity["fingerprint"], "samples": identity["samples"]},
    )
