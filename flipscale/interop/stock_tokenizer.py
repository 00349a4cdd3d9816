"""The tokenizer of a model of stock OpenCLIP, without code of its directory."""

from __future__ import annotations

from typing import Any


def stock_tokenizer(open_clip: Any, name: str) -> Any:
    """Return OpenCLIP's tokenizer of a model.

    A directory can bring a tokenizer with code of its own. The transformers library runs that code if the
    configuration or a person at the terminal allows it; here both are overruled.

    Args:
        open_clip: The package.
        name: What OpenCLIP calls the model.

    Raises:
        ValueError: If the tokenizer needs code of its own.
    """
    config: dict[str, Any] = open_clip.get_model_config(name) or {}
    text: dict[str, Any] = config.get("text_cfg") or {}
    if text.get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(name, trust_remote_code=False)
    return open_clip.get_tokenizer(name)
