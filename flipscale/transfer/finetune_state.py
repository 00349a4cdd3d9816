"""The directory of a fine-tuning: its settings, and the weights and moments after the newest epoch.

OUT/settings.json          the settings; the same command resumes, other settings are refused
OUT/checkpoint.safetensors model.NAME, exp_avg.NAME and exp_avg_sq.NAME, fp32; epochs done in its header
OUT/results.json           the scores, at the end
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flipscale.distributed.world import World
from flipscale.documents import read_object, typed
from flipscale.errors import RunError, UserError, words_of
from flipscale.files import check_writable, open_regular, write_durably
from flipscale.interop.tensor_files import read_header, save_tensors
from flipscale.transfer.finetune_recipe import FinetuneRecipe
from flipscale.transfer.results import ClassifierResults

_open_tensors: Any = safe_open  # it has no types

_SETTINGS = "settings.json"
_CHECKPOINT = "checkpoint.safetensors"
_PARTIAL = f"{_CHECKPOINT}.partial"
_RESULTS = "results.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that decides the result of a fine-tuning."""

    checkpoint: str
    samples_seen: int | None
    train: str
    test: str
    recipe: FinetuneRecipe

    def document(self) -> dict[str, object]:
        """Return the settings as settings.json has them: those of the recipe next to the others."""
        fields = asdict(self)
        recipe = fields.pop("recipe")
        return {**fields, **recipe}

    @classmethod
    def read(cls, path: Path) -> FinetuneSettings:
        """Read a settings.json.

        Raises:
            FileNotFoundError: If there is no file.
            UserError: If the file is damaged: a field is missing or unknown, or has a wrong type or value.
            OSError: If the file cannot be read.
        """
        document = read_object(path, _ANOTHER)
        own = {name: document[name] for name in _OWN_FIELDS if name in document}
        recipe = {name: value for name, value in document.items() if name not in _OWN_FIELDS}
        try:
            settings = typed(cls, {**own, "recipe": recipe})
            if settings.document().keys() != document.keys():
                raise ValueError("its keys are not those of a fine-tuning")
        except (ValueError, UserError) as error:  # a recipe refuses what the options of the command refuse
            raise UserError(f"{path} is damaged ({error}); {_ANOTHER}") from None
        return settings


_ANOTHER = "give --out a new directory"
_OWN_FIELDS = ("checkpoint", "samples_seen", "train", "test")


@dataclass(frozen=True)
class FinetuneState:
    """The files of a fine-tuning."""

    directory: Path

    def claim(self, settings: FinetuneSettings) -> None:
        """Make the directory this fine-tuning's, or check that it is.

        Raises:
            UserError: If the directory holds anything else or cannot be written.
        """
        try:
            self._claim(settings)
            check_writable(self.directory / _PARTIAL)
        except OSError as error:
            raise UserError(
                f"{self.directory} cannot be used ({error.strerror}); give --out another directory"
            ) from None

    def _claim(self, settings: FinetuneSettings) -> None:
        path = self.directory / _SETTINGS
        try:
            earlier = FinetuneSettings.read(path).document()
        except (FileNotFoundError, NotADirectoryError):
            if self.directory.exists() and (not self.directory.is_dir() or any(self.directory.iterdir())):
                raise UserError(f"{self.directory} holds something else already; {_ANOTHER}") from None
            self.directory.mkdir(parents=True, exist_ok=True)
            write_durably(path, json.dumps(settings.document(), indent=2) + "\n")
            return

        wanted = settings.document()
        if earlier != wanted:
            differs = next(key for key in wanted if earlier[key] != wanted[key])
            raise UserError(
                f"{self.directory} holds another fine-tuning: its {differs} is {earlier[differs]}, not "
                f"{wanted[differs]}; {_ANOTHER}"
            )

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
        """Replace the checkpoint by one after `epochs` epochs; a crash leaves either of them complete.

        Raises:
            RunError: If the file cannot be written, for example for lack of room.
        """
        path = self.directory / _CHECKPOINT
        partial = self.directory / _PARTIAL
        try:
            # Create the file with the usual rights: safetensors would make it readable only for its owner.
            partial.touch()
            save_tensors(_tensors(model, optimizer), partial, {"epochs": str(epochs)})

            # On disk before it replaces the older one.
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{path} cannot be written after epoch {epochs} ({words_of(error)}); make room there, and "
                "the same command resumes from the last epoch that was saved",
                kind="disk",
            ) from error

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, world: World) -> int:
        """Fill model and optimizer on every process, as `load` does, and return the number of epochs done.

        Raises:
            UserError: As `load` does, and if the processes do not find the same number of epochs done.
        """
        epochs = self.load(model, optimizer, steps)
        counts = world.gather(epochs)
        if len(set(counts)) > 1:
            raise UserError(
                f"the processes find from {min(counts)} to {max(counts)} epochs done in {self.directory}, "
                "since their nodes do not see the same directory; give an --out on a file system that all "
                "nodes share"
            )
        return epochs

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> int:
        """Fill model and optimizer from the checkpoint, if there is one.

        Args:
            model: Receives the weights.
            optimizer: Receives the moments and the step count.
            steps: Optimizer steps per epoch.

        Returns:
            The number of epochs done; 0 without a checkpoint.

        Raises:
            UserError: If the checkpoint is damaged or of another model.
            OSError: If it cannot be read.
        """
        path = self.directory / _CHECKPOINT
        try:
            open_regular(path).close()
        except FileNotFoundError:
            return 0
        except IsADirectoryError as error:
            raise UserError(f"{path} cannot be used ({error.strerror}); move it away") from None

        try:
            epochs = _count(read_header(path)["epochs"])
            for parameter in _trained(optimizer):
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(epochs * steps)),
                    **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
                }
            # One tensor after the other: the whole checkpoint is three times as large as the model.
            with _open_tensors(path, "pt") as file:
                for name, tensor in _tensors(model, optimizer).items():
                    stored = file.get_tensor(name)
                    if (stored.shape, stored.dtype) != (tensor.shape, tensor.dtype):
                        raise ValueError(f"{name} is {stored.dtype} of shape {tuple(stored.shape)}")
                    tensor.copy_(stored)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise UserError(
                f"{path} cannot be used ({error}); remove it to start the fine-tuning again"
            ) from error
        return epochs

    def write_results(self, results: ClassifierResults) -> None:
        """Write results.json.

        Raises:
            RunError: If the file cannot be written, for example for lack of room.
        """
        path = self.directory / _RESULTS
        try:
            write_durably(path, json.dumps(results, indent=2) + "\n")
        except OSError as error:
            raise RunError(
                f"{path} cannot be written ({error.strerror}); make room there, and the same command only "
                "scores again",
                kind="disk",
            ) from error


def _count(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"its epochs are {digits[:80]!r}")
    return int(digits)


def _trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the live weights and moments by their names in the checkpoint."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if moment in state}
    return tensors
