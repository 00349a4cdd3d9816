"""Load a trained model from a run, one of its checkpoints, or an OpenCLIP directory."""

from __future__ import annotations

from pathlib import Path

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.interop.load_checkpoint import load_checkpoint
from flipscale.interop.loaded_model import LoadedModel, build_with_tokenizer
from flipscale.interop.openclip_directory import CONFIG, local_directory
from flipscale.interop.openclip_import import import_openclip
from flipscale.runs import checkpoint
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.directory import RunDirectory
from flipscale.runs.manifest import MANIFEST
from flipscale.runs.resume_point import find_trained
from flipscale.runs.verification import DamagedCheckpoint


def is_model(path: Path) -> bool:
    """Return whether a path holds something that `load_model` loads."""
    path = local_directory(path)
    return any((path / name).is_file() for name in (CONFIG, "job.yaml", MANIFEST))


def load_model(path: Path, world: World) -> LoadedModel:
    """Load the newest checkpoint of a run, a checkpoint directory, or an OpenCLIP directory.

    All processes of `world` call this function together; each gets the whole model on its device.

    Args:
        path: The directory; an OpenCLIP directory also as `local-dir:PATH`.
        world: The processes.

    Raises:
        UserError: On every process, if `path` is none of these, or a named checkpoint is damaged.
    """
    device = world.device
    path = local_directory(path)
    if (path / CONFIG).is_file():
        return build_with_tokenizer(*import_openclip(path), path, device)

    if (path / "job.yaml").is_file():
        run = RunDirectory(path.resolve())
        newest = world.lead(lambda: find_trained(run))
        if newest is None:
            raise UserError(f"{path} has no whole checkpoint; train it first, or bring its checkpoints back")
        return load_checkpoint(run, newest, device)

    if (path / MANIFEST).is_file():
        run = RunDirectory.of_checkpoint(path)
        return load_checkpoint(run, world.lead(lambda: _read_checkpoint(path)), device)

    raise UserError(
        f"{path} is neither a run, nor a checkpoint, nor an OpenCLIP directory; name one of these"
    )


def _read_checkpoint(path: Path) -> Checkpoint:
    try:
        return checkpoint.read(path)
    except DamagedCheckpoint as damage:
        raise UserError(f"the checkpoint {path} is damaged: {damage}; name an older one") from None
