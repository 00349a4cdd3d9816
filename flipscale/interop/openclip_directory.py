"""The directory format of OpenCLIP (>= 3.0): its files, and its configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from flipscale.errors import UserError

CONFIG = "open_clip_config.json"
CARD = "README.md"
# The classic weights have a folder of their own: OpenCLIP takes weights that it finds in the directory
# itself.
CLASSIC = "classic/open_clip.pt"
TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json")
BIAS_KEY = "flipscale.patch_bias"
"""The key of the patch bias in the header of the weights, which OpenCLIP does not read."""


def read_config(directory: Path) -> dict[str, Any]:
    """Return the configuration of an OpenCLIP directory; empty if there is none.

    Raises:
        UserError: If the file is not JSON.
    """
    try:
        config: Any = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{directory / CONFIG} is not JSON ({error}); restore or remove it") from error

    return cast("dict[str, Any]", config) if isinstance(config, dict) else {}


def finished_config(directory: Path) -> dict[str, Any]:
    """Return the configuration of a directory that OpenCLIP can load.

    Raises:
        UserError: If the configuration is missing, unfinished or not JSON.
    """
    config = read_config(directory)
    if "model_cfg" not in config:
        raise UserError(f"{directory} holds no finished {CONFIG}; name a directory that OpenCLIP can load")
    return config


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Replace the configuration of a directory as a whole."""
    partial = directory / f"{CONFIG}.partial"
    partial.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, directory / CONFIG)
