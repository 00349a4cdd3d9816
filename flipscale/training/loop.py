"""The training loop: the order of all that happens in a step."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from flipscale.budget import Budget, Step
from flipscale.config import Job
from flipscale.errors import StoppedEarly
from flipscale.orchestration.segments.segment import Segment
from flipscale.progress import Progress
from flipscale.runs.metrics import MetricsLog
from flipscale.training.agreement import Agreement
from flipscale.training.data import TrainingData
from flipscale.training.saver import Saver
from flipscale.training.stage import Stage
from flipscale.training.step_log import StepLog
from flipscale.training.update import Updater


class TrainingLoop:
    """The training of one segment.

    Args:
        job: The job.
        budget: The budget of the job.
        segment: This start of the run, already begun.
        data: The training data.
        stage: The model, in the shape and state of `progress`.
        progress: Where training begins.

    Attributes:
        progress: What is trained, up to the last step whose facts all processes have exchanged;
            `saver.committed` is what is on disk.
    """

    def __init__(
        self,
        job: Job,
        budget: Budget,
        segment: Segment,
        data: TrainingData,
        stage: Stage,
        progress: Progress,
    ) -> None:
        self._job = job
        self._budget = budget
        self._segment = segment
        self._world = segment.world
        self._data = data
        self._stage = stage
        self.progress = progress
        self._samples_seen = progress.samples_seen
        self._steps_done = budget.steps_done(progress.samples_seen)
        self.saver = Saver(job, segment, stage.model, progress)
        self._updater = Updater(job, budget, data.tokenizer.padding_id, segment.world, progress)

    def run(self) -> Progress:
        """Train to the end of the budget, and record how the segment ended.

        Raises:
            StoppedEarly: If a stop was requested.
            RunError: If the run cannot continue.
        """
        try:
            self._train()
        except BaseException as error:
            # The last step counts as trained, though its facts may be under way.
            reached = replace(self.progress, samples_seen=self._samples_seen)
            self._segment.end(self.saver.committed, reached, error)
            raise
        self._segment.end(self.saver.committed, self.progress)
        return self.progress

    def _train(self) -> None:
        agreement = Agreement(self._job.data, self._segment, self._data.shards.index.damage_records())
        if not self._world.leads:
            self._train_steps(None, agreement)
            return

        # Only the leading process writes metrics.
        tensorboard = self._job.logging.tensorboard
        run = self._segment.run.path
        with MetricsLog(run, self.progress.samples_seen, tensorboard=tensorboard) as log:
            self._train_steps(log, agreement)

    def _train_steps(self, log: MetricsLog | None, agreement: Agreement) -> None:
        start = self.progress.samples_seen
        batches = self._data.stream.batches(start)
        steps = StepLog(self._job.logging, self._budget, start, log, self._stage.specs, self._world)

        with steps, closing(self.saver), closing(batches):
            # A stop may have been requested during start-up: stop before the first step.
            self._stop_if(agreement.reason_to_stop())
            # The last segment may have ended in an evaluation: repeat what is not recorded.
            self._evaluate(steps, log)
            self._segment.training()

            while self._samples_seen < self._budget.total:
                with steps.waiting_for_data():
                    batch = next(batches)
                step = batch.step

                # Change the shape first: the batch has the image size of its phase.
                self._begin_phase(step.phase, steps)
                scalars = self._updater.update(self._stage, batch)
                logs = steps.due(step, self._steps_done + 1)
                saves = self._saves_after(step)

                # Agree before anything is written: all processes save, stop and evaluate at the same step.
                # What is written needs the digest of this step at once.
                clock_due = self.saver.due_by_clock()
                decision = agreement.reach(batch, save_due=clock_due, at_once=logs or saves)
                self.progress = self.progress.after(decision.samples, decision.digest, decision.content)
                self._samples_seen = step.stop
                self._steps_done += 1

                # Log before saving: the host waits for the device here, and a run that diverged ends unsaved.
                if logs:
                    self._segment.check_lock()
                    steps.write(batch, self._steps_done, self.progress, scalars)
                    self._updater.check_skips(self._samples_seen)

                # Save before a stop and before an evaluation: neither may cost the steps so far.
                if saves or decision.save or decision.reason:
                    self._save(step)
                self._segment.watchdog.step(self._samples_seen)
                self._stop_if(decision.reason)

                # Evaluate last: the scores belong to a checkpoint that exists.
                self._evaluate(steps, log)

    def _begin_phase(self, phase: int, steps: StepLog) -> None:
        """Give the model the shape of a phase, from the checkpoint at the end of the phase before."""
        if self._stage.has_shape_of(phase):
            return

        # Check the lock before the model is freed: a newer start may own the run.
        self._segment.check_lock()
        with steps.paused(), self._segment.watchdog.long_operation():
            before = self.saver.phase_end(self._samples_seen)
            self._stage.begin_phase(phase, before)
            self.saver.prepare(self._stage.model)

    def _saves_after(self, step: Step) -> bool:
        """Return whether to save after a step, whatever the clock and the requests say."""
        due = self.saver.due(step, self._steps_done + 1)
        return due or self._ends_phase(step) or self._stage.evaluation.due(step.stop)

    def _ends_phase(self, step: Step) -> bool:
        return step.stop == self._budget.spans[step.phase].stop

    def _save(self, step: Step) -> None:
        progress = self._updater.counted(self.progress, self._stage.model)
        self.saver.save(self._stage.model, progress, permanent=self._ends_phase(step))
        self.progress = progress

    def _evaluate(self, steps: StepLog, log: MetricsLog | None) -> None:
        samples_seen = self._samples_seen
        if not self._stage.evaluation.due(samples_seen):
            return

        self._segment.check_lock()
        watchdog = self._segment.watchdog
        with steps.paused(), watchdog.long_operation():
            self._stage.evaluation.run(samples_seen, log, watchdog.alive)

    def _stop_if(self, reason: str | None) -> None:
        """Raise StoppedEarly if all processes agreed on a reason to stop, and the budget is not spent."""
        if not reason or self._samples_seen >= self._budget.total:
            return

        raise StoppedEarly(
            f"stopped on request ({reason}) at {self._samples_seen} of {self._budget.total} samples; "
            "run the same command again to resume",
            self._segment.reason_of_stop(reason),
            agreed=True,
        )
