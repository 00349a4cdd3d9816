"""Training, top to bottom: from the newest checkpoint to the end of the budget, or to a request to stop."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from flipscale.budget import Budget, Step, crosses_multiple
from flipscale.config import Job
from flipscale.data.quarantine import Quarantine
from flipscale.data.samples.stream import Batch
from flipscale.errors import RunError, StoppedEarly
from flipscale.models.inputs import Inputs
from flipscale.orchestration.segments.segment import Segment
from flipscale.orchestration.segments.stop_requests import REASONS, agreed_reason
from flipscale.order_digest import OrderDigest
from flipscale.progress import Progress
from flipscale.runs import checkpoint
from flipscale.runs.checkpoint_writer import CheckpointWriter
from flipscale.runs.directory import check_identity, prepare
from flipscale.runs.metrics import MetricsLog
from flipscale.sharding.strategy import ShardedModel
from flipscale.training.gradients import accumulate_gradients
from flipscale.training.setup import TrainingData, open_data, slow_in_bf16
from flipscale.training.stage import Stage
from flipscale.training.step_log import StepLog

MAX_SKIPPED_IN_A_ROW = 20
_log = logging.getLogger(__name__)


def train(job: Job, budget: Budget, segment: Segment) -> Progress:
    """Train `job` until its budget (see `check_job`) is spent; every process calls it.

    Raises UserError for wrong input, StoppedEarly where a stop was requested (a checkpoint is committed and
    the same call goes on from it), RunError where the run cannot go on.
    """
    run, world = segment.run, segment.world
    found = world.lead(lambda: checkpoint.find(run.checkpoints))
    progress = found.progress if found else Progress()
    world.lead(lambda: prepare(run, job, progress.samples_seen))
    segment.begin(progress)
    if world.leads and job.sharding.precision == "bf16" and slow_in_bf16(world.device):
        _log.warning(
            "this CPU has no AVX-512, and bf16 is slow on it: set sharding.precision to fp32 in a new run"
        )
    data = open_data(job, run, budget, world)
    world.lead(lambda: check_identity(run, data.identity(), data.tokenizer.save))
    if found:
        _log.info("going on from %s", found.path)
    stage = Stage(job, budget, data.tokenizer, run, world, found)
    return _Trainer(job, segment, budget, data, stage, progress).run()


class _Trainer:
    """One segment's training. `self.progress` is what is trained, `self.writer.committed` what is on disk."""

    def __init__(
        self,
        job: Job,
        segment: Segment,
        budget: Budget,
        data: TrainingData,
        stage: Stage,
        progress: Progress,
    ) -> None:
        self.job = job
        self.segment = segment
        self.run_directory, self.world = segment.run, segment.world
        self.budget = budget
        self.data = data
        self.stage = stage
        self.progress = progress
        self.writer = CheckpointWriter(
            segment.run.checkpoints,
            job.model_dump(mode="json", exclude_none=True),
            job.checkpoint.keep_last,
            progress,
            segment.world,
        )
        self.writer.prepare(self.model.state())
        self.steps_done = budget.steps_done(progress.samples_seen)
        self.saved_at = progress.samples_seen
        self.last_save = time.monotonic()
        # On the device, so that a step never waits for the host: [skipped steps, skipped in a row].
        self.skips = torch.tensor([progress.skipped_steps, 0], device=segment.world.device)

    @property
    def model(self) -> ShardedModel:
        return self.stage.model

    def run(self) -> Progress:
        """Train to the end of the budget, and account for the segment."""
        try:
            if self.world.leads:
                self._lead()
            else:
                self._train(None, None)
        except BaseException as error:
            self.segment.end(self.writer.committed, self.progress, error)
            raise
        self.segment.end(self.writer.committed, self.progress)
        return self.progress

    def _lead(self) -> None:
        quarantine = Quarantine(self.run_directory.quarantine)
        quarantine.add(self.data.cut_shards())
        samples, tensorboard = self.progress.samples_seen, self.job.logging.tensorboard
        with MetricsLog(self.run_directory.path, samples, tensorboard=tensorboard) as log:
            self._train(log, quarantine)

    def _train(self, log: MetricsLog | None, quarantine: Quarantine | None) -> None:
        batches = self.data.stream.batches(self.progress.samples_seen)
        start, leads = self.progress.samples_seen, self.world.leads
        steps = StepLog(self.job.logging, self.budget, start, log, leads=leads)
        with steps, closing(self.writer), closing(batches):
            reason = agreed_reason(self.world.sum(self.segment.stop.counts()))
            if reason and self.progress.samples_seen < self.budget.total:
                self._end_early(reason)
            self._evaluate(steps, log)
            self.segment.training()
            while self.progress.samples_seen < self.budget.total:
                with steps.waiting_for_data():
                    batch = next(batches)
                self._enter(batch.step.phase, steps)
                scalars = self._step(batch)
                reason, save_due = self._agree(batch, quarantine)
                if steps.due(batch.step, self.steps_done):
                    self.segment.check_hold()
                    steps.write(batch.step, self.steps_done, self.progress.digest, scalars)
                    self._check_skips()
                phase_ends = self.progress.samples_seen == self.budget.spans[batch.step.phase].stop
                if phase_ends or save_due or reason or self.stage.evaluation.due(self.progress.samples_seen):
                    self._save(batch.step, permanent=phase_ends)
                self.segment.watchdog.step(self.progress.samples_seen)
                if reason and self.progress.samples_seen < self.budget.total:
                    self._end_early(reason)
                self._evaluate(steps, log)

    def _evaluate(self, steps: StepLog, log: MetricsLog | None) -> None:
        """Where it is due. Also before the first step: the last segment may have ended in an evaluation."""
        if self.stage.evaluation.due(self.progress.samples_seen):
            self.segment.check_hold()
            with steps.paused(), self.segment.watchdog.unhurried():
                self.stage.evaluation.run(self.progress.samples_seen, log, self.segment.watchdog.alive)

    def _enter(self, phase: int, steps: StepLog) -> None:
        """Give the model the shape of this phase, from the checkpoint at the end of the one before."""
        if self.stage.fits(phase):
            return
        self.segment.check_hold()
        with steps.paused(), self.segment.watchdog.unhurried():
            self.writer.wait()
            root, seen = self.run_directory.checkpoints, self.progress.samples_seen
            self.stage.enter(phase, self.world.lead(lambda: checkpoint.read_phase_end(root, seen)))
            self.writer.prepare(self.model.state())

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        """One update; returns what a line of metrics tells of it, 0-d on the device."""
        step, device = batch.step, self.world.device
        span = self.budget.spans[step.phase]
        if step.start == span.start and span.phase.fresh_optimizer:
            self.model.reset_optimizer()
        positions = batch.positions.to(device, non_blocking=True)
        images = batch.images.to(device, non_blocking=True)
        tokens = batch.tokens.to(device, non_blocking=True)
        padding, seed = self.data.tokenizer.padding_id, self.job.seed
        inputs = Inputs(images, tokens).masked(
            positions, span.phase, self.stage.spec, padding_id=padding, seed=seed
        )
        scalars = accumulate_gradients(self.model, inputs, self.job.loss, self.job.sharding.micro_batch)
        norm = self.model.gradient_norm(self.job.optimizer.clip_grad_norm)
        finite = torch.isfinite(scalars["loss"]) & torch.isfinite(norm)
        self.model.update(step.lr, finite)
        self.skips[0] += ~finite
        self.skips[1] = torch.where(finite, 0, self.skips[1] + 1)
        return {**scalars, "grad_norm": norm, "skipped_steps": self.skips[0]}

    def _agree(self, batch: Batch, quarantine: Quarantine | None) -> tuple[str | None, bool]:
        """Exchange the step's small facts; returns the agreed reason to stop, and whether to save now."""
        save_due = self.world.leads and self._save_due(batch.step)
        facts = [batch.digest.as_int64(), len(batch.bad), int(save_due), *self.segment.stop.counts()]
        digest, bad, saves, *requests = self.world.sum(facts)
        if bad:
            # Durable before any checkpoint that counts these samples as replaced.
            records = self.world.gather(batch.bad)
            limit, seen = self.job.data.max_bad_fraction, batch.step.stop
            if quarantine is not None:
                quarantine.add(record for part in records for record in part)
            self.world.lead(lambda: quarantine and quarantine.judge(seen, limit))
        self.progress = self.progress.after(batch.step.size, OrderDigest(digest))
        self.steps_done += 1
        return agreed_reason(requests[: len(REASONS)]), saves > 0

    def _save_due(self, step: Step) -> bool:
        for cadence in self.job.checkpoint.every:
            if cadence.unit == "samples" and crosses_multiple(step.start, step.stop, cadence.amount):
                return True
            if cadence.unit == "steps" and (self.steps_done + 1) % cadence.amount == 0:
                return True
            if cadence.unit == "seconds" and time.monotonic() - self.last_save >= cadence.amount:
                return True
        return False

    def _save(self, step: Step, *, permanent: bool) -> None:
        keep_every = self.job.checkpoint.keep_every
        marked = keep_every is not None and crosses_multiple(self.saved_at, step.stop, keep_every)
        skipped = int(self.skips[0].item())
        progress = replace(self.progress, skipped_steps=skipped, optimizer_steps=self.model.updates())
        with self.segment.watchdog.unhurried():
            self.writer.save(self.model.state(), progress, permanent=permanent or marked)
        self.progress = progress
        self.saved_at = progress.samples_seen
        self.last_save = time.monotonic()

    def _end_early(self, reason: str) -> None:
        if reason == "stop_file" and self.world.leads:
            self.run_directory.stop_file.unlink(missing_ok=True)
        raise StoppedEarly(
            f"stopped on request ({reason}) at {self.progress.samples_seen} of {self.budget.total} samples; "
            "give the same command again to go on",
            self.segment.reason_of_stop(reason),
            agreed=True,
        )

    def _check_skips(self) -> None:
        """End the run if its steps keep failing; called where the host waits for the device anyway."""
        in_a_row = int(self.skips[1].item())
        if in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RunError(
                f"the loss or its gradient was not finite for the last {in_a_row} steps, up to "
                f"{self.progress.samples_seen} samples; lower base_lr, lengthen warmup or set "
                "optimizer.clip_grad_norm, and go on from the last checkpoint in a new run",
                kind="non_finite",
            )
