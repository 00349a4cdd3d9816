"""Load a trained model from a run, one of its checkpoints, or an OpenCLIP directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flipscale.config import Job
from flipscale.data.text.of_job import load_job_tokenizer
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
    """An fp32 model with its tokenizer. What only a run has is None for an OpenCLIP directory."""

    model: FLIP
    """The model, on the device of its process."""
    tokenizer: Tokenizer
    """The tokenizer that the model was trained with."""
    job: Job | None = None
    """The job of the run."""
    samples_seen: int | None = None
    """Samples seen at the checkpoint."""
    digest: OrderDigest | None = None
    """The order digest of these samples."""
    data: dict[str, Any] | None = None
    """Fingerprint and number of samples of the training set."""


def is_model(path: Path) -> bool:
    """Return whether a path holds something that `load_model` loads."""
    return any((path / name).is_file() for name in (CONFIG, "job.yaml", checkpoint.MANIFEST))


def load_model(path: Path, world: World) -> LoadedModel:
    """Load the newest checkpoint of a run, a checkpoint directory, or an OpenCLIP directory.

    All processes of `world` call this function together; each gets the whole model on its device.

    Args:
        path: The directory.
        world: The processes.

    Raises:
        UserError: On every process, if `path` is none of these, or a named checkpoint is damaged.
    """
    device = world.device
    if (path / CONFIG).is_file():
        return build_with_tokenizer(*import_openclip(path), path, device)

    if (path / "job.yaml").is_file():
        run = RunDirectory(path.resolve())
        newest = world.lead(lambda: checkpoint.find(run.checkpoints))
        if newest is None:
            raise UserError(f"{path} has no whole checkpoint yet; train it first")
        return _from_checkpoint(run, newest, device)

    if (path / checkpoint.MANIFEST).is_file():
        run = RunDirectory(path.resolve().parents[1])
        return _from_checkpoint(run, world.lead(lambda: _read_checkpoint(path)), device)

    raise UserError(
        f"{path} is neither a run, nor a checkpoint, nor an OpenCLIP directory; name one of these"
    )


def build_with_tokenizer(
    spec: ModelSpec, state: StateDict, directory: Path | None, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Build a model of OpenCLIP, and load its tokenizer.

    Args:
        spec: The model's shape.
        state: Its weights, under flipscale's names.
        directory: The OpenCLIP directory with the files of the tokenizer, if there is one.
        device: The device of the model.
    """
    model = build_model(spec, device="meta").to_empty(device=device)
    model.load_state_dict(state)

    kind = "wordpiece" if spec.text.pool == "first" else "clip_bpe"
    vocab = str(directory) if kind == "wordpiece" and directory is not None else None
    return LoadedModel(model, load_tokenizer(kind, vocab, spec.text.context_length))


def _read_checkpoint(path: Path) -> Checkpoint:
    try:
        return checkpoint.read(path)
    except checkpoint.DamagedCheckpoint as damage:
        raise UserError(f"the checkpoint {path} is damaged: {damage}; name an older one") from None


def _from_checkpoint(run: RunDirectory, source: Checkpoint, device: torch.device) -> LoadedModel:
    job = Job.model_validate(source.job)
    tokenizer = load_job_tokenizer(job.data.tokenizer, run.tokenizer)

    # The weights are read in the precision that they were trained in, and then made fp32.
    spec = checkpoint_spec(model_spec(job, tokenizer), job, source.progress.samples_seen)
    model = build_model(spec, device="meta").to_empty(device=device)
    if job.sharding.precision == "fp64":
        model.double()
    source.load({f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()})

    identity = json.loads(run.index.read_text())
    return LoadedModel(
        model.float(),
        tokenizer,
        job,
        source.progress.samples_seen,
        source.progress.digest,
        {"fingerprint": identity["fingerprint"], "samples": identity["samples"]},
    )
