"""OpenCLIP's own trainer in this process; its weights and seconds of training are saved at regular steps.

    python tools/bench/openclip_trainer.py PACKAGES OUT STEPS --model ... --train-data ...

PACKAGES is the directory of webdataset <= 0.2.86 and pandas, which the trainer needs. OUT gets `step_N.pt`
(a state dict) every STEPS steps and at the end, and `seconds.json`. The other arguments are the trainer's
own, for one epoch: it fills its shuffle buffer again at each epoch. Time is that of `train_one_epoch`,
without saving.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flipscale.third_party import import_open_clip


class Watch:
    """A stand-in for the schedule of the learning rate, which the trainer calls before every step."""

    def __init__(self, model: torch.nn.Module, schedule: Callable[[int], Any], out: Path, every: int) -> None:
        self._model = model
        self._schedule = schedule
        self._out = out
        self._every = every
        self._steps = 0
        self._began = time.perf_counter()
        self._seconds: dict[int, float] = {}

    def __call__(self, step: int) -> None:
        """Save the weights if it is time, then set the rate of the next step."""
        if step and step % self._every == 0:
            self.mark(step)
        self._steps = step + 1
        self._schedule(step)

    def mark(self, steps: int) -> None:
        """Save the weights after a number of steps."""
        now = time.perf_counter()
        self._seconds[steps] = now - self._began
        torch.save(self._model.state_dict(), self._out / f"step_{steps}.pt")
        self._began += time.perf_counter() - now

    def end(self) -> None:
        """Save the last weights and the seconds."""
        if self._steps not in self._seconds:
            self.mark(self._steps)
        (self._out / "seconds.json").write_text(json.dumps(self._seconds))


def main(packages: str, out: Path, every: int, *arguments: str) -> None:
    """Train.

    Args:
        packages: Directory of webdataset <= 0.2.86 and pandas.
        out: Directory of the weights.
        every: Steps between two saves.
        arguments: Arguments of OpenCLIP's trainer.
    """
    sys.path.insert(0, packages)
    import_open_clip()
    from open_clip_train import main as trainer

    out.mkdir(parents=True)
    train_one_epoch = trainer.train_one_epoch

    def watched(
        model: Any, data: Any, loss: Any, epoch: int, optimizer: Any, scaler: Any, scheduler: Any,
        *more: Any, **named: Any,
    ) -> None:  # fmt: skip
        watch = Watch(model, scheduler, out, every)
        train_one_epoch(model, data, loss, epoch, optimizer, scaler, watch, *more, **named)
        watch.end()

    trainer.train_one_epoch = watched
    trainer.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
