"""A file of OpenCLIP weights: found, and read without running anything that it may hold."""

from __future__ import annotations

import pickle
import shlex
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from flipscale.errors import UserError

WEIGHTS = "open_clip_model.safetensors"
# The order in which OpenCLIP looks into a directory; after these it takes any file of these kinds.
_NAMES = (
    WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_KINDS = (".safetensors", ".bin", ".pth")

# OpenAI's programs keep these three numbers among their tensors; OpenCLIP leaves them out, too.
_SIZES = ("input_resolution", "context_length", "vocab_size")

_CONVERSION = """\
import sys, torch
from safetensors.torch import save_file
source, target = sys.argv[1:]
state = {load}
state = state.get("state_dict", state)
sizes = {sizes}
tensors = {{name: value.clone().contiguous() for name, value in state.items() if name not in sizes}}
save_file(tensors, target)"""
_PICKLED = 'torch.load(source, map_location="cpu", weights_only=False)'
_SCRIPTED = 'torch.jit.load(source, map_location="cpu").state_dict()'


@dataclass(frozen=True)
class Weights:
    """A state dict, floating point in fp32, under OpenCLIP's names."""

    tensors: dict[str, Tensor]
    header: dict[str, str] = field(default_factory=dict)
    """Strings beside the tensors of a safetensors file."""


def find_weights(directory: Path) -> Path:
    """The file that OpenCLIP takes from a directory. Raises UserError where there is none."""
    for name in _NAMES:
        if (directory / name).is_file():
            return directory / name
    others = sorted(path for path in directory.iterdir() if path.suffix in _KINDS and path.is_file())
    if not others:
        raise UserError(f"{directory} holds no {WEIGHTS} nor other weights; put the file beside its config")
    return others[0]


def read_weights(path: Path) -> Weights:
    """Read safetensors, or a pickle of nothing but tensors: a state dict, or OpenCLIP's training checkpoint.

    Raises:
        UserError: the file is missing, damaged, no state dict, or a pickle that would run code.
    """
    if not path.is_file():
        raise UserError(f"the weights {path} do not exist; name a .safetensors, .bin or .pt file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
            return Weights(_plain(load_file(path), path), header)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); export or download it again") from error
    return Weights(_plain(_unpickled(path), path))


def loadable(path: Path, work: Path) -> Path:
    """A file of weights that stock OpenCLIP can load: `path`, or a copy in `work` where it holds OpenAI's
    sizes, which OpenCLIP leaves out of a program alone."""
    if path.suffix != ".safetensors":
        return path
    with safe_open(path, "pt") as file:
        if not set(_SIZES) & set(file.keys()):
            return path
    save_file(_plain(load_file(path), path), work / WEIGHTS)
    return work / WEIGHTS


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript, which is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, "is no pickle of tensors alone", _PICKLED)) from error
    except (RuntimeError, EOFError, OSError) as error:
        if "TorchScript" in str(error):
            raise UserError(_refusal(path, "is a TorchScript program", _SCRIPTED)) from error
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise UserError(f"{path} is damaged ({reason}); export or download it again") from error


def _refusal(path: Path, what: str, load: str) -> str:
    target = path.with_suffix(".safetensors")
    code = _CONVERSION.format(load=load, sizes=_SIZES)
    command = shlex.join(["python", "-c", code, str(path), str(target)])
    return (
        f"{path} {what} and could run code when it is read, so it is refused; if you trust where it comes "
        f"from, convert it where code of it can do no harm, and give {target}:\n{command}"
    )


def _plain(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors under OpenCLIP's names, from what its trainer, DDP or a bare save wrote."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict; give a file of weights that OpenCLIP can load")
    wrapped = all(str(name).startswith("module.") for name in state)
    return {
        str(name).removeprefix("module.") if wrapped else str(name): (
            value.float() if value.is_floating_point() else value
        )
        for name, value in state.items()
        if name not in _SIZES
    }
