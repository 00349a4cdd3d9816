"""The directory of a fine-tuning: its settings, and the weights and moments after the newest epoch.

OUT/settings.json          what was asked for; the same again goes on, anything else is refused
OUT/checkpoint.safetensors model.NAME, exp_avg.NAME and exp_avg_sq.NAME, fp32; epochs done in its header
OUT/results.json           the scores, at the end
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flipscale.errors import RunError, UserError
from flipscale.files import check_writable, write_durably

_SETTINGS, _CHECKPOINT, _RESULTS = "settings.json", "checkpoint.safetensors", "results.json"
_PARTIAL = f"{_CHECKPOINT}.partial"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class FinetuneState:
    directory: Path

    def claim(self, settings: dict[str, Any]) -> None:
        """Make the directory this fine-tuning's.

        Raises UserError where it holds anything else or cannot be written.
        """
        try:
            self._claim(settings)
            check_writable(self.directory / _PARTIAL)
        except OSError as error:
            raise UserError(
                f"{self.directory} cannot be used ({error.strerror}); give --out another directory"
            ) from None

    def _claim(self, settings: dict[str, Any]) -> None:
        path = self.directory / _SETTINGS
        settings = json.loads(json.dumps(settings))  # as they are read again
        if not path.is_file():
            if self.directory.exists() and (not self.directory.is_dir() or any(self.directory.iterdir())):
                raise UserError(f"{self.directory} holds something else already; give --out a new directory")
            self.directory.mkdir(parents=True, exist_ok=True)
            write_durably(path, json.dumps(settings, indent=2) + "\n")
            return
        try:
            held = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path} is damaged; give --out a new directory") from None
        if held != settings:
            differs = next(key for key in {**held, **settings} if held.get(key) != settings.get(key))
            raise UserError(
                f"{self.directory} holds another fine-tuning: its {differs} is {held.get(differs)}, not "
                f"{settings.get(differs)}; give --out a new directory"
            )

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
        """Replace the checkpoint by one after `epochs` epochs; after a crash, either one is there whole.

        Raises RunError where there is no room for it, say.
        """
        path, partial = self.directory / _CHECKPOINT, self.directory / _PARTIAL
        try:
            partial.touch()  # with the rights that files have here: safetensors would make it the owner's
            save_file(_tensors(model, optimizer), partial, {"epochs": str(epochs)})
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{path} cannot be written after epoch {epochs} ({error}); make room there, and the same "
                "command goes on from the last one that was saved",
                kind="disk",
            ) from error

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> int:
        """Fill model and optimizer, and return the epochs done (of `steps` updates each); 0 without one.

        Raises UserError for one that is damaged or of another model.
        """
        path = self.directory / _CHECKPOINT
        if not path.is_file():
            return 0
        try:
            with safe_open(path, "pt") as file:
                epochs = int(file.metadata()["epochs"])
                for parameter in _trained(optimizer):
                    optimizer.state[parameter] = {
                        "step": torch.tensor(float(epochs * steps)),
                        **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
                    }
                for name, tensor in _tensors(model, optimizer).items():
                    tensor.copy_(file.get_tensor(name))
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path} cannot be used ({error}); remove it to start the fine-tuning again"
            ) from error
        return epochs

    def write_results(self, results: dict[str, Any]) -> None:
        """Raises RunError where there is no room for them, say."""
        path = self.directory / _RESULTS
        try:
            write_durably(path, json.dumps(results, indent=2) + "\n")
        except OSError as error:
            raise RunError(
                f"{path} cannot be written ({error.strerror}); make room there, and the same command only "
                "scores again",
                kind="disk",
            ) from error


def _trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The live weights and moments by their names in the checkpoint."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if moment in state}
    return tensors
