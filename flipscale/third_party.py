"""Import open_clip and timm also where torchvision was built for another torch.

Both import torchvision, whose compiled operators do not load beside a torch of another build (the CPU
torch with the CUDA torchvision of PyPI, say). torchvision then dies while it registers fake versions of two
operators that nothing declared. Neither library needs them: declaring them is enough.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from flipscale.errors import UserError

_MISSING_OPERATORS = ("nms", "qnms")
_declarations: list[torch.library.Library] = []  # a declaration lives as long as its library object


def import_open_clip() -> ModuleType:
    """The `open_clip` package, importable whatever the state of torchvision.

    Raises:
        UserError: open_clip or torchvision is not installed.
    """
    return import_beside_torchvision("open_clip", "open_clip_torch")


def import_timm(module: str) -> ModuleType:
    """A module of timm, such as `timm.layers`, importable whatever the state of torchvision.

    Raises:
        UserError: timm or torchvision is not installed.
    """
    return import_beside_torchvision(module, "timm")


def import_beside_torchvision(module: str, distribution: str) -> ModuleType:
    """A module that imports torchvision on its way.

    Args:
        module: its whole name.
        distribution: what pip calls the package it belongs to.

    Raises:
        UserError: it, or something that it imports, is not installed.
    """
    try:
        _import_torchvision()
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        raise UserError(
            f"{error.name} is not installed, and {package} needs it; pip install {distribution}"
        ) from error


def _import_torchvision() -> None:
    """Import torchvision; where it fails for its missing operators, declare them and try again."""
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        _forget("torchvision")
        if not isinstance(error, RuntimeError) or "torchvision::nms" not in str(error) or _declarations:
            raise
        library = torch.library.Library("torchvision", "DEF")
        for operator in _MISSING_OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declarations.append(library)
        try:
            importlib.import_module("torchvision")
        except Exception:
            _forget("torchvision")
            raise


def _forget(package: str) -> None:
    """Drop what a failed import left behind, so that the next one starts afresh."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
