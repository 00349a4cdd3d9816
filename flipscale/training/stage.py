"""The sharded model of the current phase, rebuilt if the next phase uses another image or patch size."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.distributed.world import World
from flipscale.models.flip import build_model
from flipscale.models.of_job import checkpoint_spec, model_spec, phase_specs
from flipscale.models.presets import ModelSpec
from flipscale.runs.checkpoint import Checkpoint
from flipscale.sharding.shard import shard
from flipscale.sharding.strategy import ShardedModel, restore_finite
from flipscale.training.periodic_evaluation import PeriodicEvaluation
from flipscale.training.starting_weights import check_resampling, resampling_fill, start_from


class Stage:
    """The sharded model in the shape of one phase, and the evaluation at the image size of this phase.

    All processes build it together. A change of shape is a new model that starts from the checkpoint at the
    end of the phase before. The result is thus the same whether or not the run stopped in between.

    Args:
        job: The job.
        budget: The budget of the job.
        tokenizer: The tokenizer of the job.
        weights_record: The file in the run directory that identifies the weights that the run started from.
        world: The processes of the run.
        newest: The newest checkpoint. Without one the model has the shape of the first phase, and the
            initial weights or those that the job starts from.

    Attributes:
        specs: The shape of the model in each phase.
        spec: The shape of the model.
        model: The sharded model with its optimizer.
        evaluation: The periodic evaluation of the model.
    """

    spec: ModelSpec
    model: ShardedModel
    evaluation: PeriodicEvaluation

    def __init__(
        self,
        job: Job,
        budget: Budget,
        tokenizer: Tokenizer,
        weights_record: Path,
        world: World,
        newest: Checkpoint | None,
    ) -> None:
        self._job = job
        self._budget = budget
        self._tokenizer = tokenizer
        self._world = world

        # Check first what a later phase or evaluation needs: a run should not fail hours after its start.
        whole = model_spec(job, tokenizer)
        self.specs = phase_specs(whole, job)
        if len(set(self.specs)) > 1:
            check_resampling(world)
        PeriodicEvaluation.check(job.evaluation, world)

        self._build(checkpoint_spec(whole, job, newest.progress.samples_seen if newest else 0))
        if newest:
            steps = newest.progress.optimizer_steps
            restore_finite(self.model, newest.load, steps, newest.path, world)
        elif job.model.weights is not None:
            start_from(job, self.spec, tokenizer, self.model, weights_record, world)

    def has_shape_of(self, phase: int) -> bool:
        """Return whether the model has the shape of this phase."""
        return self.specs[phase] == self.spec

    def begin_phase(self, phase: int, before: Checkpoint) -> None:
        """Rebuild the model in the shape of a phase; all processes call it together.

        Weights that depend on the shape are resampled, and their moments are empty. The other weights keep
        their moments.

        Args:
            phase: The number of the phase.
            before: The checkpoint at the end of the phase before.
        """
        old = self.spec
        self._release()
        self._build(self.specs[phase])

        fp64 = self._job.sharding.precision == "fp64"
        fill = resampling_fill(before, old, self.spec, self._world, fp64=fp64)
        restore_finite(self.model, fill, before.progress.optimizer_steps, before.path, self._world)

    def _build(self, spec: ModelSpec) -> None:
        job = self._job
        self.spec = spec

        self.model = shard(
            build_model(spec, device="meta"), job.sharding, job.optimizer, job.seed, self._world
        )
        self.evaluation = PeriodicEvaluation(
            job.evaluation,
            self._budget,
            self.model,
            self._tokenizer,
            spec.vision.image_size,
            self._world,
        )

    def _release(self) -> None:
        """Free the model and its optimizer: memory need not hold two of them."""
        self.model.release()
        del self.model, self.evaluation

        # Wrapped models are parts of reference cycles, and the stream has frozen the objects of its start.
        gc.unfreeze()
        gc.collect()
        gc.freeze()

        if self._job.sharding.compile:
            torch.compiler.reset()  # forget the graphs of the old shape
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
