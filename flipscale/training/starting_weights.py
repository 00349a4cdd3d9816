"""The weights that a run or a phase starts from: those of a trained model, resampled if its sizes differ."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from flipscale.config import Job
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.interop.load_model import load_model
from flipscale.interop.resampling import check_ready, resample_state, resized_names, shapes
from flipscale.models.initialization import initial_value
from flipscale.models.presets import ModelSpec, TextSpec, VisionSpec
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.weights import check_weights_origin
from flipscale.sharding.strategy import ShardedModel
from flipscale.sharding.wrapping import write_whole

_log = logging.getLogger(__name__)


def start_from(
    job: Job, spec: ModelSpec, tokenizer: Tokenizer, model: ShardedModel, record: Path, world: World
) -> None:
    """Give a run without a checkpoint the weights of `job.model.weights`, with a fresh optimizer.

    All processes call it together, and each has the whole model in its host memory for a moment. Patch
    kernels and learned positions are resampled if the job has another image or patch size. Parameters that
    only the model of the job has (a logit bias, a decoder) keep their initial values. The record keeps the
    digest of the weights, so that another start before the first checkpoint has the same ones.

    Args:
        job: The job.
        spec: The shape of the model.
        tokenizer: The tokenizer of the job.
        model: The sharded model.
        record: The file in the run directory that identifies the weights.
        world: The processes of the run.

    Raises:
        UserError: If the weights are missing, if they have another shape or vocabulary, or if they changed.
    """
    assert job.model.weights is not None
    source = Path(job.model.weights)
    trained = load_model(source, replace(world, device=torch.device("cpu")))
    theirs = trained.model.spec
    vision = replace(theirs.vision, image_size=spec.vision.image_size, patch_size=spec.vision.patch_size)
    resized = replace(theirs, vision=vision)
    _check_fit(job, source, resized, spec)
    if trained.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"model.weights {source} was trained with another vocabulary; set data.tokenizer.vocab to its "
            "own (an OpenCLIP directory holds it, a run has it in tokenizer/)"
        )

    # A decoder of the reconstruction loss belongs to its own job: only the towers are taken over.
    towers = {
        name: tensor
        for name, tensor in trained.model.state_dict().items()
        if not name.startswith("reconstruction.")
    }
    world.lead(lambda: check_weights_origin(record, source, _digest(towers)))

    old = {name: towers[name] for name in resized_names(theirs, resized) if name in towers}
    # Compute on one process only: other processors may round differently.
    state = {**towers, **world.lead(lambda: resample_state(old, theirs, resized))}
    model.restore(lambda tensors: _fill(tensors, state, spec, job.seed), 0)
    _log.info("starting from the weights of %s", source)


def check_resampling(world: World) -> None:
    """Check that weights can be resampled here; all processes call it together.

    Raises:
        UserError: If a library that resampling needs is missing.
    """
    world.lead(check_ready)


def resampling_fill(
    before: Checkpoint, old: ModelSpec, new: ModelSpec, world: World, *, fp64: bool
) -> Callable[[dict[str, Tensor]], None]:
    """Return `before.load` for the state of a model of another shape; see ShardedModel.restore.

    Args:
        before: A checkpoint of the old shape.
        old: The shape of the checkpoint.
        new: The shape of the model.
        world: The processes of the run.
        fp64: Whether the job trains in fp64.
    """
    names = resized_names(old, new)
    dtype = torch.float64 if fp64 else torch.float32

    def fill(tensors: dict[str, Tensor]) -> None:
        resized = {key for key in tensors if key.split(".", 1)[1] in names}
        same = {key: tensor for key, tensor in tensors.items() if key not in resized}
        whole = {name: torch.empty(shapes(old)[name], dtype=dtype) for name in names}
        before.load({**same, **{f"model.{name}": tensor for name, tensor in whole.items()}})

        # Compute on one process only: other processors may round differently.
        resampled = world.lead(lambda: resample_state(whole, old, new))

        for key in resized:
            kind, name = key.split(".", 1)
            if kind == "model":
                write_whole(tensors[key], resampled[name])
            else:
                tensors[key].zero_()

    return fill


def _check_fit(job: Job, source: Path, theirs: ModelSpec, ours: ModelSpec) -> None:
    pairs: list[tuple[str, object, object]] = [
        ("embed_dim", theirs.embed_dim, ours.embed_dim),
        *_tower_settings("vision", theirs.vision, ours.vision),
        *_tower_settings("text", theirs.text, ours.text),
        ("mean", theirs.mean, ours.mean),
        ("std", theirs.std, ours.std),
    ]
    different = [
        f"{name} is {there} there, {here} in the job" for name, there, here in pairs if there != here
    ]

    if different:
        raise UserError(
            f"model.weights {source} does not fit model.preset {job.model.preset}: {'; '.join(different)}; "
            "set the preset, sizes and tokenizer that these weights were trained with"
        )


def _tower_settings(
    tower: str, theirs: VisionSpec | TextSpec, ours: VisionSpec | TextSpec
) -> list[tuple[str, object, object]]:
    names = [field.name for field in fields(ours)]
    return [(f"{tower}.{name}", getattr(theirs, name), getattr(ours, name)) for name in names]


def _digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes and values, whatever file format they came in."""
    hasher = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        hasher.update(f"{name} {tuple(tensor.shape)} ".encode())
        hasher.update(tensor.numpy().data)
    return hasher.hexdigest()


def _fill(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], spec: ModelSpec, seed: int) -> None:
    """Write the weights into tensors named as in a checkpoint, and zeros into their moments."""
    for key, tensor in tensors.items():
        kind, name = key.split(".", 1)
        if kind != "model":
            tensor.zero_()
            continue

        whole = state[name] if name in state else initial_value(name, tensor.shape, spec, seed)
        write_whole(tensor, whole)
