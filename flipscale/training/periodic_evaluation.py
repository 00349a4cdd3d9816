"""Evaluation while training: the job's sets, scored with the live model by all processes."""

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
from flipscale.runs.metrics import MetricsLog
from flipscale.sharding.strategy import ShardedModel

_log = logging.getLogger(__name__)


class PeriodicEvaluation:
    """Evaluates at the job's `evaluation.every` and at the end of every phase; never where it is not set.

    Args:
        image_size: side in pixels of the squares that the model takes.
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
        """Before training begins: raise UserError, on every process, where a set is not there or at odds with
        its class names."""
        if settings.every is not None:
            world.together(lambda: check_sets(settings) if world.local_rank == 0 else None)

    def run(self, samples_seen: int, log: MetricsLog | None, alive: Callable[[], None]) -> None:
        """Score the sets, unless that is recorded at `samples_seen` already; all processes call it.

        A failure is recorded in place of the scores and does not end the training.

        Args:
            log: the leading process's, and None on the others.
            alive: called after every batch of images, so that a long evaluation is not taken for a hang.
        """
        if self._world.lead(lambda: log is not None and log.evaluated(samples_seen)):
            return
        began = time.time()
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
            log.write_evaluation({**document, "seconds": time.time() - began, "time": began})

    def due(self, samples_seen: int) -> bool:
        """Whether the sets are scored at `samples_seen`. The trainer also saves there, so that what is
        scored can be had, and a stop during the scoring costs nothing."""
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
    """The model that is being trained, as evaluation asks for one."""

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
