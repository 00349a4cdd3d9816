"""Weights that are not finite numbers are refused when a checkpoint is loaded, on every process alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.one_process import OneProcess
from torch import Tensor

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.sharding.strategy import restore_finite

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


def fill_with(value: float, name: str) -> Callable[[dict[str, Tensor]], None]:
    def fill(tensors: dict[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            tensor.fill_(0.5)
            if key == name:
                tensor.view(-1)[-1] = value

    return fill


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weight_that_is_not_finite_is_named(value: float) -> None:
    """The run trained on: every update was skipped, and the order digest was right to the end."""
    model = OneProcess.start("ddp").model
    with pytest.raises(
        UserError, match=r"samples_64 has numbers .* not finite, the first in model\.visual\.proj"
    ):
        restore_finite(
            model, fill_with(value, "model.visual.proj"), 1, Path("run/checkpoints/samples_64"), WORLD
        )


def test_finite_weights_are_loaded() -> None:
    model = OneProcess.start("ddp").model
    restore_finite(model, fill_with(0.25, "model.visual.proj"), 1, Path("samples_64"), WORLD)
    state = dict(model.state())
    assert state["model.visual.proj"].flatten()[-1] == 0.25
    assert all(tensor.isfinite().all() for tensor in state.values())
