"""Import open_clip and timm even if torchvision was built for another torch.

Both import torchvision, whose compiled operators do not load next to a torch of another build. An example is
the CPU build of torch with the CUDA build of torchvision from PyPI. torchvision then fails while it registers
fake versions of two operators that nothing declared. Neither library needs them, so it is enough to declare
them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import torch

from flipscale.errors import UserError

_MISSING_OPERATORS = ("nms", "qnms")
_declarations: list[torch.library.Library] = []
"""The declared operators; a declaration lives as long as its library object."""


def import_open_clip() -> ModuleType:
    """Import the package `open_clip`, whatever the state of torchvision.

    Raises:
        UserError: If open_clip or torchvision is not installed.
    """
    return _import_with_torchvision("open_clip", "open_clip_torch")


def import_timm(module: str) -> ModuleType:
    """Import a module of timm, such as `timm.layers`, whatever the state of torchvision.

    Raises:
        UserError: If timm or torchvision is not installed.
    """
    return _import_with_torchvision(module, "timm")


def torchvision_fits() -> bool:
    """Return whether the imports above needed no help, so that `import open_clip` works in any program."""
    return not _declarations


def torchvision_remedy() -> str:
    """Return the command that installs the torchvision of this torch, from the index that torch came from."""
    torch_version = importlib.metadata.version("torch")
    _, _, build = torch_version.partition("+")
    release = importlib.metadata.version("torchvision").partition("+")[0]
    version = f"{release}+{build}" if build else release
    return f"pip install --force-reinstall --no-deps torchvision=={version}"


def _import_with_torchvision(module: str, distribution: str) -> ModuleType:
    """Import a module that imports torchvision.

    Args:
        module: The full name of the module.
        distribution: What pip calls the package that the module belongs to.

    Raises:
        UserError: If the module, or something that it imports, is not installed.
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
    """Import torchvision. If it fails because operators are missing, declare them and try again."""
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        _forget("torchvision")
        if not isinstance(error, RuntimeError) or "torchvision::nms" not in str(error) or _declarations:
            raise

        library: Any = torch.library.Library("torchvision", "DEF")
        for operator in _MISSING_OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declarations.append(library)

        try:
            importlib.import_module("torchvision")
        except Exception:
            _forget("torchvision")
            raise


def _forget(package: str) -> None:
    """Remove the modules that a failed import left, so that the next import starts from nothing."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
