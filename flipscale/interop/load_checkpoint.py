"""Load a trained model from a checkpoint of its run."""

from __future__ import annotations

import torch

from flipscale.interop.loaded_model import LoadedModel
from flipscale.models.flip import build_model
from flipscale.models.of_job import checkpoint_spec, model_spec
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.directory import RunDirectory
from flipscale.runs.identity import recorded_data
from flipscale.sharding.strategy import check_finite, finite


def load_checkpoint(run: RunDirectory, source: Checkpoint, device: torch.device) -> LoadedModel:
    """Load the model of a verified checkpoint, with the tokenizer of its run.

    Raises:
        UserError: If the checkpoint does not fit the model of its job or has infinite weights, or if
            the tokenizer is not that of the run.
    """
    job = source.saved_job()
    identity, tokenizer = recorded_data(run, job.data.tokenizer)

    # The weights are read in the precision that they were trained in, and then made fp32.
    spec = checkpoint_spec(model_spec(job, tokenizer), job, source.progress.samples_seen)
    model = build_model(spec, device="meta").to_empty(device=device)
    if job.sharding.precision == "fp64":
        model.double()
    weights = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    source.load(weights)
    check_finite([name for name, weight in weights.items() if not finite(weight)], source.path)

    return LoadedModel(
        model.float(),
        tokenizer,
        job,
        source.progress.samples_seen,
        source.progress.digest,
        {"fingerprint": identity.fingerprint, "samples": identity.samples},
    )
