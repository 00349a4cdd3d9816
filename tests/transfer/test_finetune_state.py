"""The directory of a fine-tuning in broken shapes: refused in one sentence, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.broken_files import SHAPES
from torch import Tensor, nn

from flipscale.errors import UserError
from flipscale.transfer.finetune_recipe import FinetuneRecipe
from flipscale.transfer.finetune_state import FinetuneSettings, FinetuneState

SETTINGS = FinetuneSettings("model", 64, "train", "test", FinetuneRecipe())


@pytest.fixture
def state(tmp_path: Path) -> FinetuneState:
    """A fine-tuning that has saved its second epoch."""
    state = FinetuneState(tmp_path / "out")
    state.claim(SETTINGS)
    state.save(*learner(), epochs=2)
    return state


def learner() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_same_settings_are_read_again(state: FinetuneState) -> None:
    assert FinetuneSettings.read(state.directory / "settings.json") == SETTINGS
    state.claim(SETTINGS)
    assert state.load(*learner(), steps=3) == 2


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"missing"}))
def test_broken_settings_are_refused(state: FinetuneState, shape: str) -> None:
    path = state.directory / "settings.json"
    SHAPES[shape](path, path.read_bytes())
    if shape == "a dangling link":
        with pytest.raises(UserError, match=r"holds something else already; give --out a new directory$"):
            state.claim(SETTINGS)
    else:
        with pytest.raises(UserError, match=r"^\S+settings.json is damaged \(.{5,300}\); give --out a new "):
            state.claim(SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"samples_seen": "64"},
        {"samples_seen": True},
        {"checkpoint": None},
        {"base_lr": "0.1"},
        {"drop_path": 7},
        {"betas": [0.9]},
        {"passes": {"epochs": 1.5, "batch_size": 4}},
        {"passes": []},
        {"another": 1},
    ],
)
def test_settings_of_other_types_are_refused(state: FinetuneState, change: dict[str, object]) -> None:
    path = state.directory / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"settings.json is damaged \(.*\); give --out a new directory"):
        state.claim(SETTINGS)


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"missing", "a dangling link"}))
def test_broken_checkpoint_is_refused(state: FinetuneState, shape: str) -> None:
    path = state.directory / "checkpoint.safetensors"
    SHAPES[shape](path, path.read_bytes())
    with pytest.raises(UserError, match=r"checkpoint.safetensors cannot be used \(.*\); (remove|move) it"):
        state.load(*learner(), steps=3)


CHANGES: dict[str, Callable[[dict[str, Tensor], dict[str, str]], object]] = {
    "one value for all": lambda tensors, header: tensors.update({"model.weight": torch.ones(1, 1)}),
    "another type": lambda tensors, header: tensors.update({"model.bias": torch.ones(2).int()}),
    "no moment": lambda tensors, header: tensors.pop("exp_avg.bias"),
    "no epochs": lambda tensors, header: header.clear(),
    "negative epochs": lambda tensors, header: header.update(epochs="-1"),
    "too many epochs": lambda tensors, header: header.update(epochs="9" * 400),
}


@pytest.mark.parametrize("change", CHANGES)
def test_checkpoint_of_something_else_is_refused(state: FinetuneState, change: str) -> None:
    path = state.directory / "checkpoint.safetensors"
    tensors = load_file(path)
    header = {"epochs": "2"}
    CHANGES[change](tensors, header)
    save_file(tensors, path, header)
    with pytest.raises(UserError, match=r"checkpoint.safetensors cannot be used \(.*\); remove it to start"):
        state.load(*learner(), steps=3)
