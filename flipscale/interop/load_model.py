"""Load a trained model from a run, one of its checkpoints, or an OpenCLIP directory."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from flipscale.config import Job
from flipscale.data.text.of_job import load_job_tokenizer
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.interop.loaded_model import LoadedModel, build_with_tokenizer
from flipscale.interop.openclip_directory import CONFIG
from flipscale.interop.openclip_import import import_openclip
from flipscale.models.flip import build_model
from flipscale.models.of_job import checkpoint_spec, model_spec
from flipscale.runs import checkpoint
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.directory import RunDirectory
from flipscale.runs.manifest import MANIFEST


def is_model(path: Path) -> bool:
    """Return whether a path holds something that `load_model` loads."""
    return any((path / name).is_file() for name in (CONFIG, "job.yaml", MANIFEST))


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

    if (path / MANIFEST).is_file():
        run = RunDirectory(path.resolve().parents[1])
        return _from_checkpoint(run, world.lead(lambda: _read_checkpoint(path)), device)

    raise UserError(
        f"{path} is neither a run, nor a checkpoint, nor an OpenCLIP directory; name one of these"
    )


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
