"""The schema of a job file (pydantic, strict): its blocks, and what holds between them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from flipscale.config.data import Data
from flipscale.config.evaluation import Evaluation
from flipscale.config.model import Loss, Model
from flipscale.config.training import Checkpoints, Cluster, Hang, Logging, Optimizer, Phase, Sharding
from flipscale.config.values import Count, Default, Line, Name, Strict


class Job(Strict):
    """Everything that a training run is made from."""

    name: Name
    """The name of the run."""
    output: Annotated[Line | None, Default("`runs/NAME`")] = None
    """The run directory."""
    model: Model
    """The model; the bare name of a preset stands for `{preset: NAME}`."""
    seed: Count = 0
    """Seeds the initial weights, the sample order, the augmentations and the masks."""
    deterministic: bool = False
    """Use only algorithms that repeat to the bit on GPUs, too: a step that is repeated on as many GPUs of the
    same kind gives the same numbers. It is slower."""
    data: Data
    """The training set."""
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    """The parts of the budget, in the order in which they are trained."""
    optimizer: Optimizer = Optimizer()
    """The optimizer, AdamW with the paper's settings."""
    loss: Loss = Loss()
    """The loss over the pairs of a global batch."""
    sharding: Sharding = Sharding()
    """How model, optimizer and activations are spread over processes."""
    checkpoint: Checkpoints = Checkpoints()
    """When checkpoints are saved, and which are kept; the end of each phase is always kept."""
    logging: Logging = Logging()
    """What is written about training while it runs."""
    evaluation: Evaluation = Evaluation()
    """The sets that a model is evaluated on."""
    hang: Hang = Hang()
    """When a step that does not end is given up: the processes write their stacks to the logs, and the job
    starts again. See docs/run_directory.md."""
    cluster: Cluster = Cluster()
    """What the job asks of a cluster."""

    @model_validator(mode="after")
    def _check_phase_names(self) -> Job:
        names = [phase.name for phase in self.phases]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two phases are called {name!r}; give each its own name")
        return self

    @model_validator(mode="after")
    def _check_reconstruction(self) -> Job:
        if self.loss.reconstruction is not None and not any(phase.mask_ratio for phase in self.phases):
            raise ValueError(
                "loss.reconstruction needs hidden patches, but every phase has mask_ratio 0; "
                "raise it in one of them or leave loss.reconstruction out"
            )
        return self
