"""Find a file of OpenCLIP weights, and read it without running code that it may hold."""

from __future__ import annotations

import pickle
import shlex
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from torch import Tensor

from flipscale.errors import UserError
from flipscale.interop.file_kinds import FileKind, file_kind
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
# Bytes that compression saves at most: torch.save does not compress, and TorchScript only its code.
_MOST_COMPRESSED = 16 << 20
# How torch says that a pickle calls something else than what builds tensors.
_CODE = (
    "GLOBAL",
    "unrecognized function",
    "Can only create new object",
    "Can only build",
    "must be imported",
    "Unsupported operand",  # of pickles that torch.save does not write
)
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
    try:
        kind = _checked_kind(path)
        if kind.torch_reads:
            return Weights(_plain(_unpickled(path, kind), path))
        return Weights(_plain(load_tensors(path), path), read_header(path))
    except (SafetensorError, OSError, EOFError, MemoryError) as error:
        raise _damaged(path, error) from error


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


def _checked_kind(path: Path) -> FileKind:
    """Return the kind of a file whose name and content agree, since OpenCLIP goes by the name."""
    kind = file_kind(path)
    named_safetensors = path.suffix == ".safetensors"
    if not kind.torch_reads and kind is not FileKind.SAFETENSORS:
        raise UserError(f"{path} is {kind.value}")
    if named_safetensors == kind.torch_reads:
        right = path.with_suffix(".bin" if named_safetensors else ".safetensors").name
        raise UserError(f"{path} is {kind.value}, under a name of the other kind; rename it to {right}")
    return kind


def _unpickled(path: Path, kind: FileKind) -> Any:
    if kind is FileKind.ARCHIVE:
        _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about TorchScript, which is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, pickle.UnpicklingError) and any(words in str(error) for words in _CODE):
            raise UserError(_refusal(path, "is a pickle of more than tensors", _PICKLED)) from error
        if "TorchScript" in str(error):
            raise UserError(_refusal(path, "is a TorchScript program", _SCRIPTED)) from error
        raise _damaged(path, error) from error


def _check_archive(path: Path) -> None:
    """Raise UserError for an archive that is cut short, or far larger when it is unpacked."""
    try:
        with ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (BadZipFile, ValueError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    if unpacked > path.stat().st_size + _MOST_COMPRESSED:
        raise UserError(f"{path} is a compressed archive, which torch.save does not write; unpack it first")


def _damaged(path: Path, error: Exception) -> UserError:
    lines = str(error).split("WeightsUnpickler error: ")[-1].strip().splitlines()
    reason = lines[0][:200] if lines else "it ends too early"
    return UserError(f"{path} is damaged ({reason}); export or download it again")


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
    mapping = cast("dict[Any, Any]", content) if isinstance(content, dict) else {}
    inner = mapping.get("state_dict", mapping)
    state = cast("dict[Any, Any]", inner) if isinstance(inner, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict; give a file of weights that OpenCLIP can load")

    wrapped = all(str(name).startswith("module.") for name in state)
    return {
        str(name).removeprefix("module.") if wrapped else str(name): _checked(str(name), value, path)
        for name, value in state.items()
        if name not in _SIZES
    }


def _checked(name: str, tensor: Tensor, path: Path) -> Tensor:
    """Return a tensor as fp32 if it has floating-point numbers.

    Raises:
        UserError: If it is not a plain tensor of finite numbers.
    """
    # The type comes first: a subclass may fail at any question.
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
        raise UserError(f"{path} holds no plain numbers in {name[:80]!r}; save it again as a dense tensor")
    # A view can claim far more numbers than are stored, and each would be written out.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{path} holds fewer numbers than {name[:80]!r} has; save it again as a dense tensor")

    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.float()
    if not tensor.isfinite().all():
        raise UserError(
            f"{path} has a number that is not finite in {name[:80]!r}; take weights from before that"
        )
    return tensor
