"""The directory format of OpenCLIP (>= 3.0): its files, and its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from flipscale.errors import UserError
from flipscale.files import write_durably
from flipscale.interop.config_limits import check_config

CONFIG = "open_clip_config.json"
CARD = "README.md"
LOCAL = "local-dir:"
"""The prefix of a directory in OpenCLIP's names of models."""
_MOST_BYTES = 1 << 20  # of a configuration
# The classic weights have a folder of their own: OpenCLIP takes weights that it finds in the directory
# itself.
CLASSIC = "classic/open_clip.pt"
CLASSIC_NAME = "flipscale_model"
"""What OpenCLIP calls the model of `classic/` after `open_clip.add_model_config`."""
CLASSIC_CONFIG = f"classic/{CLASSIC_NAME}.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json")
BIAS_KEY = "flipscale.patch_bias"
"""The key of the patch bias in the header of the weights, which OpenCLIP does not read."""


def local_directory(source: str | Path) -> Path:
    """Return the path that names an OpenCLIP directory, with or without the prefix `local-dir:`."""
    return Path(str(source).removeprefix(LOCAL))


def read_config(directory: Path) -> dict[str, Any]:
    """Return the configuration of an OpenCLIP directory; empty if there is none.

    Raises:
        UserError: If the file is not JSON, or cannot be read.
    """
    path = directory / CONFIG
    if not path.exists():
        return {}
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} is not a configuration of a few kB; restore or remove it")

    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is not JSON ({reason}); restore or remove it") from error

    return cast("dict[str, Any]", config) if isinstance(config, dict) else {}


def finished_config(directory: Path) -> dict[str, Any]:
    """Return the configuration of a directory that OpenCLIP can load.

    Raises:
        UserError: If the configuration is missing, unfinished or not JSON, or describes no model that can be
            built.
    """
    config = read_config(directory)
    if "model_cfg" not in config:
        raise UserError(f"{directory} holds no finished {CONFIG}; name a directory that OpenCLIP can load")

    try:
        check_config(config)
    except UserError as error:
        raise UserError(f"{directory / CONFIG}: {error}") from None
    return config


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Replace the configuration of a directory as a whole."""
    write_durably(directory / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
