"""The preprocessing of images in a configuration of OpenCLIP, read as stock OpenCLIP reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from flipscale.errors import UserError
from flipscale.models.presets import OPENAI_MEAN, OPENAI_STD, Triple

_MODES = ("shortest", "longest", "squash")
_INTERPOLATIONS = ("bicubic", "bilinear", "random")


@dataclass(frozen=True)
class Preprocessing:
    """How images become inputs of a model."""

    mean: Triple = OPENAI_MEAN
    """Of the pixels in [0, 1], per colour."""
    std: Triple = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


def read_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of a parsed `open_clip_config.json`.

    OpenCLIP takes its defaults for null, 0 and missing values, and a single number for all colours. It knows
    more keys, which change nothing for the models here.

    Raises:
        UserError: If a value is none that OpenCLIP takes.
    """
    block: Mapping[str, Any] = config.get("preprocess_cfg") or {}
    std = _triple(block, "std", OPENAI_STD)
    if min(std) <= 0.0:
        raise UserError(f"preprocess_cfg.std is {std}, but a deviation is above zero; correct it")

    interpolation = _word(block, "interpolation", _INTERPOLATIONS, "bicubic")
    return Preprocessing(
        mean=_triple(block, "mean", OPENAI_MEAN),
        std=std,
        # OpenCLIP resamples at random only in training.
        interpolation="bicubic" if interpolation == "random" else interpolation,
        resize_mode=_word(block, "resize_mode", _MODES, "shortest"),
    )


def _triple(block: Mapping[str, Any], key: str, default: Triple) -> Triple:
    value: Any = block.get(key)
    if not value:
        return default

    numbers = cast("list[Any]", value) if isinstance(value, list) else [value]
    if len(numbers) == 1:
        numbers = numbers * 3
    if len(numbers) != 3 or not all(_is_number(number) for number in numbers):
        raise UserError(f"preprocess_cfg.{key} is {str(numbers)[:80]}; it needs one number or three")
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))


def _is_number(value: Any) -> bool:
    # Written so that a NaN fails, and an integer beyond the range of a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e6 < value < 1e6


def _word(block: Mapping[str, Any], key: str, known: tuple[str, ...], default: str) -> str:
    value: Any = block.get(key)
    if not value:
        return default
    if value not in known:
        raise UserError(f"preprocess_cfg.{key} is {str(value)[:80]!r}; OpenCLIP knows {', '.join(known)}")
    return value
