"""Find a file of OpenCLIP weights, and read it without running code that it may hold."""

from __future__ import annotations

import pickle
import shlex
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from flipscale.errors import UserError
from flipscale.interop.tensor_files import load_tensors, read_header, save_tensors, tensor_names

WEIGHTS = "open_clip_model.safetensors"
# The names in the order in which OpenCLIP tries them; after these it takes any file of these kinds.
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

# OpenAI's files keep these three numbers among their tensors; OpenCLIP leaves them out, too.
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
    """A state dict under OpenCLIP's names, with floating-point tensors in fp32."""

    tensors: dict[str, Tensor]
    header: dict[str, str] = field(default_factory=dict[str, str])
    """The strings that a safetensors file stores next to its tensors."""


def find_weights(directory: Path) -> Path:
    """Return the file of weights that OpenCLIP takes from a directory.

    Raises:
        UserError: If the directory has no weights.
    """
    for name in _NAMES:
        if (directory / name).is_file():
            return directory / name

    others = sorted(path for path in directory.iterdir() if path.suffix in _KINDS and path.is_file())
    if not others:
        raise UserError(
            f"{directory} holds no {WEIGHTS} nor other weights; put the file next to its configuration"
        )
    return others[0]


def read_weights(path: Path) -> Weights:
    """Read a file of weights without running code that it may hold.

    Args:
        path: A safetensors file, or a pickle of nothing but tensors: a state dict, or a checkpoint of
            OpenCLIP's trainer.

    Raises:
        UserError: If the file is missing, damaged, not a state dict, or a pickle that would run code.
    """
    if not path.is_file():
        raise UserError(f"the weights {path} do not exist; name a .safetensors, .bin or .pt file")
    if path.suffix == ".safetensors":
        try:
            return Weights(_plain(load_tensors(path), path), read_header(path))
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); export or download it again") from error

    return Weights(_plain(_unpickled(path), path))


def loadable(path: Path, work: Path) -> Path:
    """Return a file of weights that stock OpenCLIP can load.

    OpenCLIP leaves OpenAI's three sizes out only if they are in a TorchScript program. A safetensors file
    that holds them is therefore copied without them.

    Args:
        path: The file of weights.
        work: A directory for the copy.
    """
    if path.suffix != ".safetensors" or not tensor_names(path).intersection(_SIZES):
        return path

    save_tensors(_plain(load_tensors(path), path), work / WEIGHTS)
    return work / WEIGHTS


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about TorchScript, which is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, "is a pickle of more than tensors", _PICKLED)) from error
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
        f"{path} {what} and could run code when it is read, so it is refused; if you trust its source, "
        f"convert it in a place where its code can do no harm, and give {target}:\n{command}"
    )


def _plain(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors under OpenCLIP's names, from what its trainer, DDP or a bare save wrote."""
    mapping = cast("dict[Any, Any]", content) if isinstance(content, dict) else None
    state: Any = None if mapping is None else mapping.get("state_dict", mapping)
    if not _is_state_dict(state):
        raise UserError(f"{path} holds no state dict; give a file of weights that OpenCLIP can load")

    wrapped = all(str(name).startswith("module.") for name in state)
    return {
        str(name).removeprefix("module.") if wrapped else str(name): (
            value.float() if value.is_floating_point() else value
        )
        for name, value in state.items()
        if name not in _SIZES
    }


def _is_state_dict(value: Any) -> TypeGuard[dict[Any, Tensor]]:
    if not isinstance(value, dict):
        return False
    return all(isinstance(tensor, Tensor) for tensor in cast("dict[Any, Any]", value).values())
