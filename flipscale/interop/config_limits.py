"""The limits of OpenCLIP's configurations, which hold before flipscale or stock OpenCLIP builds a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from flipscale.errors import UserError

# The sizes that a model is built from, with the largest values that are believed.
_LARGEST = {
    "embed_dim": 65_536,
    "layers": 1_000,
    "width": 65_536,
    "heads": 65_536,
    "head_width": 65_536,
    "image_size": 16_384,
    "patch_size": 16_384,
    "context_length": 65_536,
    "vocab_size": 10_000_000,
}
_MOST_WEIGHTS = 20_000_000_000  # of one tower; the largest published ones have a tenth of it
# OpenCLIP hands every key to transformers, which runs code of the directory for `trust_remote_code`.
_TOKENIZER_KEYS = ("clean", "strip_sep_token", "language")


def check_config(config: Mapping[str, Any]) -> None:
    """Check the blocks and sizes of a parsed `open_clip_config.json`.

    Raises:
        UserError: If a block is missing or not an object, a size is not a number that a model can have, or
            the tokenizer has a setting that could run code.
    """
    model = _block(config, "model_cfg")
    _check_sizes(model, "model_cfg")
    for name in ("vision_cfg", "text_cfg"):
        tower = _block(model, name)
        _check_sizes(tower, name)
        _check_tower(tower, name)

    kwargs = _block(_block(model, "text_cfg"), "tokenizer_kwargs", empty=True)
    for key in kwargs:
        if key not in _TOKENIZER_KEYS:
            raise UserError(
                f"tokenizer_kwargs.{key[:80]} could run code; known are {', '.join(_TOKENIZER_KEYS)}, so "
                "remove it if you trust the tokenizer"
            )
    for name in ("preprocess_cfg", "flipscale"):
        _block(config, name, empty=True)


def _block(parent: Mapping[str, Any], name: str, *, empty: bool = False) -> dict[str, Any]:
    """Return a block; if it may be empty, it may also be null or missing."""
    value = parent.get(name)
    if value is None and empty:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{name} is {_quoted(value)} and not an object; restore the file")
    return cast("dict[str, Any]", value)


def _check_sizes(block: Mapping[str, Any], name: str) -> None:
    for key, largest in _LARGEST.items():
        value: Any = block.get(key)
        # A ResNet has a list of layers, and an image may have two sides.
        for size in cast("list[Any]", value) if isinstance(value, list) else [value]:
            if size is None and value is None:
                continue
            if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= largest:
                raise UserError(
                    f"{name}.{key} is {_quoted(size)}, but a model needs a whole number from 1 to {largest}"
                )


def _check_tower(tower: Mapping[str, Any], name: str) -> None:
    """Raise UserError if a transformer would have more weights than any that is known."""
    layers = tower.get("layers")
    width = tower.get("width")
    if isinstance(layers, int) and isinstance(width, int) and 12 * layers * width**2 > _MOST_WEIGHTS:
        raise UserError(
            f"{name} has {layers} layers of width {width}, which are more than {_MOST_WEIGHTS:,} weights; "
            "correct its sizes"
        )


def _quoted(value: Any) -> str:
    """Return the first characters of a value, as messages show it."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    text = repr(value) if not isinstance(value, (dict, list)) else type(cast("object", value)).__name__
    return text[:80]
