"""The weights that a run starts from: those of a trained model in place of initial ones."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from flipscale.config import Job
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.files import write_durably
from flipscale.interop.load_model import load_model
from flipscale.interop.resampling import resample_state, resized_names
from flipscale.models.initialization import initial_value
from flipscale.models.presets import ModelSpec, TextSpec, VisionSpec
from flipscale.runs.directory import RunDirectory
from flipscale.sharding.strategy import ShardedModel
from flipscale.sharding.wrapping import write_whole

_log = logging.getLogger(__name__)


def start_from(
    job: Job, spec: ModelSpec, tokenizer: Tokenizer, model: ShardedModel, run: RunDirectory, world: World
) -> None:
    """Give a run without checkpoint the weights of `job.model.weights`, with a fresh optimizer; all
    processes call it, and each has the whole model in its host's memory for a moment.

    Patch kernels and learned positions are resampled where the job has another image or patch size. What its
    model has beyond that of the weights (a logit bias, a decoder) keeps its initial value. The run directory
    keeps their digest, so that another start before the first checkpoint has the same ones.

    Raises:
        UserError: there are no such weights, they are of another shape or vocabulary, or they changed.
    """
    assert job.model.weights is not None
    source = Path(job.model.weights)
    trained = load_model(source, replace(world, device=torch.device("cpu")))
    theirs = trained.model.spec
    sizes = {"image_size": spec.vision.image_size, "patch_size": spec.vision.patch_size}
    resized = replace(theirs, vision=replace(theirs.vision, **sizes))
    different = _differences(resized, spec)
    if different:
        raise UserError(
            f"model.weights {source} does not fit model.preset {job.model.preset}: {'; '.join(different)}; "
            "set the preset, sizes and tokenizer that these weights were trained with"
        )
    if trained.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"model.weights {source} was trained with another vocabulary; set data.tokenizer.vocab to its "
            "own (an OpenCLIP directory holds it, a run has it in tokenizer/)"
        )
    # A decoder of the reconstruction loss belongs to its own job: the towers alone are taken over.
    towers = {
        name: tensor
        for name, tensor in trained.model.state_dict().items()
        if not name.startswith("reconstruction.")
    }
    world.lead(lambda: _record(run, source, towers))
    old = {name: towers[name] for name in resized_names(theirs, resized) if name in towers}
    # Computed once: other processors may round differently.
    state = {**towers, **world.lead(lambda: resample_state(old, theirs, resized))}
    model.restore(lambda tensors: _fill(tensors, state, spec, job.seed), 0)
    _log.info("starting from the weights of %s", source)


def _differences(theirs: ModelSpec, ours: ModelSpec) -> list[str]:
    pairs: list[tuple[str, object, object]] = [
        ("embed_dim", theirs.embed_dim, ours.embed_dim),
        *_settings("vision", theirs.vision, ours.vision),
        *_settings("text", theirs.text, ours.text),
        ("mean", theirs.mean, ours.mean),
        ("std", theirs.std, ours.std),
    ]
    return [f"{name} is {there} there, {here} in the job" for name, there, here in pairs if there != here]


def _settings(
    tower: str, theirs: VisionSpec | TextSpec, ours: VisionSpec | TextSpec
) -> list[tuple[str, object, object]]:
    names = [field.name for field in fields(ours)]
    return [(f"{tower}.{name}", getattr(theirs, name), getattr(ours, name)) for name in names]


def _record(run: RunDirectory, source: Path, state: Mapping[str, Tensor]) -> None:
    digest = _digest(state)
    if run.weights.exists():
        recorded = json.loads(run.weights.read_text())
        if recorded["sha256"] != digest:
            raise UserError(
                f"{source} is not what {run.path} began with; restore these weights, or set another `output`"
            )
        return
    write_durably(run.weights, json.dumps({"source": str(source.resolve()), "sha256": digest}))


def _digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values, whatever the file format that they came in."""
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
