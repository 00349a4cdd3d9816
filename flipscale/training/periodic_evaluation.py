"""Evaluation while training: all processes score the sets of the job with the live model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from torch import Tensor

from flipscale.budget import Budget, crosses_multiple
from flipscale.config import Evaluation
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.evaluate import check_sets, evaluate
from flipscale.evaluation.features import Encoder
from flipscale.models.inputs import Inputs
from flipscale.runs.evaluations import RecordedEvaluation
from flipscale.runs.metrics import MetricsLog
from flipscale.sharding.strategy import ShardedModel

_log = logging.getLogger(__name__)


class PeriodicEvaluation:
    """The evaluation at the job's `evaluation.every` and at the end of every phase; none if that is not set.

    Args:
        settings: The `evaluation` block of the job.
        budget: The budget of the job.
        model: The sharded model.
        tokenizer: The tokenizer of the job.
        image_size: Side in pixels of the images of the model.
        world: The processes of the run.
    """

    def __init__(
        self,
        settings: Evaluation,
        budget: Budget,
        model: ShardedModel,
        tokenizer: Tokenizer,
        image_size: int,
        world: World,
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._world = world
        self._encoder = Encoder(_Live(model), tokenizer, image_size, world)

    @staticmethod
    def check(settings: Evaluation, world: World) -> None:
        """Check the sets before training begins; all processes call it together.

        Args:
            settings: The `evaluation` block of the job.
            world: The processes of the run.

        Raises:
            UserError: If a set is missing or does not fit its class names; in every process.
        """
        if settings.every is not None:
            world.together(lambda: check_sets(settings) if world.local_rank == 0 else None)

    def run(self, samples_seen: int, log: MetricsLog | None, alive: Callable[[], None]) -> None:
        """Score the sets, unless their scores are already recorded; all processes call it together.

        A failure is recorded instead of the scores, and does not end the training.

        Args:
            samples_seen: Samples seen by the model.
            log: The metrics of the run in the leading process; None in the others.
            alive: A callback after every batch of images, so that a long evaluation does not count as a hang.
        """
        if self._world.lead(lambda: log is not None and log.evaluated(samples_seen)):
            return

        began = time.time()
        steady = time.monotonic()  # a wall clock can be set back meanwhile
        try:
            document = evaluate(
                self._encoder,
                self._settings,
                samples_seen=samples_seen,
                progress=lambda name, images: alive(),
            )
        except UserError as error:
            _log.warning("the evaluation at %d samples failed: %s", samples_seen, error)
            document = {"samples_seen": samples_seen, "error": str(error)}

        if log is not None:
            line = {**document, "seconds": time.monotonic() - steady, "time": began}
            log.write_evaluation(RecordedEvaluation.from_record(line))

    def due(self, samples_seen: int) -> bool:
        """Return whether the sets are scored at this number of samples.

        The trainer also saves there. The model that is scored is thus on disk, and a stop during the
        evaluation costs nothing.
        """
        every = self._settings.every
        if every is None or samples_seen == 0:
            return False

        span = self._budget.span_at(samples_seen - 1)
        if samples_seen == span.stop:
            return True
        if every.unit == "steps":
            return self._budget.steps_done(samples_seen) % every.amount == 0
        return crosses_multiple(samples_seen - span.phase.batch_size, samples_seen, every.amount)


class _Live:
    """The model in training, as a DualEncoder of evaluation."""

    def __init__(self, model: ShardedModel) -> None:
        self._model = model

    def encode_image(self, images: Tensor) -> Tensor:
        features = self._model.forward(Inputs(images=images)).images
        assert features is not None
        return features

    def encode_text(self, texts: Tensor) -> Tensor:
        features = self._model.forward(Inputs(texts=texts)).texts
        assert features is not None
        return features
