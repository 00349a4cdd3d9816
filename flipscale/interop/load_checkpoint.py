"""Load a trained model from a checkpoint of its run."""

from __future__ import annotations

import torch

from flipscale.config import Job
from flipscale.data.text.of_job import load_job_tokenizer
from flipscale.interop.loaded_model import LoadedModel
from flipscale.models.flip import build_model
from flipscale.models.of_job import checkpoint_spec, model_spec
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.directory import RunDirectory
from flipscale.runs.identity import read_identity
from flipscale.sharding.strategy import check_finite, finite


def load_checkpoint(run: RunDirectory, source: Checkpoint, device: torch.device) -> LoadedModel:
    """Load the model of a verified checkpoint, with the tokenizer of its run.

    Raises:
        UserError: If the checkpoint does not fit the model of its job, or has weights that are not finite.
    """
    job = Job.model_validate(source.job)
    tokenizer = load_job_tokenizer(job.data.tokenizer, run.tokenizer)

    # The weights are read in the precision that they were trained in, and then made fp32.
    spec = checkpoint_spec(model_spec(job, tokenizer), job, source.progress.samples_seen)
    model = build_model(spec, device="meta").to_empty(device=device)
    if job.sharding.precision == "fp64":
        model.double()
    weights = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    source.load(weights)
    check_finite([name for name, weight in weights.items() if not finite(weight)], source.path)

    identity = read_identity(run)
    return LoadedModel(
        model.float(),
        tokenizer,
        job,
        source.progress.samples_seen,
        source.progress.digest,
        {"fingerprint": identity.fingerprint, "samples": identity.samples},
    )
