"""The model as the phase at hand trains it, and its change of shape where a phase has another one."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.distributed.world import World
from flipscale.interop.resampling import check_ready, resample_state, resized_names, shapes
from flipscale.models.flip import build_model
from flipscale.models.of_job import checkpoint_spec, model_spec, phase_specs
from flipscale.models.presets import ModelSpec
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.directory import RunDirectory
from flipscale.sharding.shard import shard
from flipscale.sharding.strategy import ShardedModel
from flipscale.sharding.wrapping import write_whole
from flipscale.training.periodic_evaluation import PeriodicEvaluation
from flipscale.training.starting_weights import start_from


class Stage:
    """The sharded model with the shape of one phase, and the evaluation at this phase's image size.

    It begins as `found`, or with the first phase's shape and the weights that the job starts from; all
    processes make it together. A change of shape is a new model that starts from the checkpoint at the end of
    the phase before, so that it comes out the same whether the run went on without a stop or not.
    """

    spec: ModelSpec
    model: ShardedModel
    evaluation: PeriodicEvaluation

    def __init__(
        self,
        job: Job,
        budget: Budget,
        tokenizer: Tokenizer,
        run: RunDirectory,
        world: World,
        found: Checkpoint | None,
    ) -> None:
        self._job = job
        self._budget = budget
        self._tokenizer = tokenizer
        self._world = world
        whole = model_spec(job, tokenizer)
        self._specs = phase_specs(whole, job)
        if len(set(self._specs)) > 1:
            world.lead(check_ready)
        PeriodicEvaluation.check(job.evaluation, world)
        self._build(checkpoint_spec(whole, job, found.progress.samples_seen if found else 0))
        if found:
            self.model.restore(found.load, found.progress.optimizer_steps)
        elif job.model.weights is not None:
            start_from(job, self.spec, tokenizer, self.model, run, world)

    def fits(self, phase: int) -> bool:
        """Whether the model has the shape of this phase."""
        return self._specs[phase] == self.spec

    def enter(self, phase: int, before: Checkpoint) -> None:
        """Give the model the shape of `phase`, and the weights of `before`, made at the end of the phase
        before; all processes call it.

        Weights that depend on the shape are resampled, and their moments are empty; the others keep theirs.
        """
        old = self.spec
        self._release()
        self._build(self._specs[phase])
        fill = _resampling_fill(before, old, self.spec, self._job.sharding.precision == "fp64", self._world)
        self.model.restore(fill, before.progress.optimizer_steps)

    def _build(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.model = shard(
            build_model(spec, device="meta"),
            self._job.sharding,
            self._job.optimizer,
            self._job.seed,
            self._world,
        )
        self.evaluation = PeriodicEvaluation(
            self._job.evaluation,
            self._budget,
            self.model,
            self._tokenizer,
            spec.vision.image_size,
            self._world,
        )

    def _release(self) -> None:
        """Free the model and its optimizer: two of them need not fit into memory."""
        self.model.release()
        del self.model, self.evaluation
        # Wrapped models lie in cycles, and the stream has frozen what was there when it began.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        if self._job.sharding.compile:
            torch.compiler.reset()  # else the new shape counts as one that varies, and is compiled as such
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _resampling_fill(
    before: Checkpoint, old: ModelSpec, new: ModelSpec, fp64: bool, world: World
) -> Callable[[dict[str, Tensor]], None]:
    """`before.load` for the state of a model of another shape; see ShardedModel.restore."""
    names = resized_names(old, new)
    resized = {f"{kind}.{name}" for kind in ("model", "exp_avg", "exp_avg_sq") for name in names}
    dtype = torch.float64 if fp64 else torch.float32

    def fill(tensors: dict[str, Tensor]) -> None:
        whole = {name: torch.empty(shapes(old)[name], dtype=dtype) for name in names}
        same = {key: tensor for key, tensor in tensors.items() if key not in resized}
        before.load({**same, **{f"model.{name}": tensor for name, tensor in whole.items()}})
        # Computed once: other processors may round differently.
        resampled = world.lead(lambda: resample_state(whole, old, new))
        for key in tensors.keys() & resized:
            kind, name = key.split(".", 1)
            if kind == "model":
                write_whole(tensors[key], resampled[name])
            else:
                tensors[key].zero_()

    return fill
