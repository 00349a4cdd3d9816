"""Any model of stock open_clip behind the interface of evaluation: its own towers, colours and tokenizer."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flipscale.errors import UserError
from flipscale.interop.import_source import ImportSource, find_import_source
from flipscale.interop.weights import find_weights, read_weights
from flipscale.third_party import import_open_clip

LOCAL = "local-dir:"


class StockModel:
    """What `evaluation.features` asks of a model, from open_clip's own code."""

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._model = model.to(device).eval()
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    def encode_image(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """L2-normalised features (B, D) of uint8 (B, 3, S, S). Raises UserError for hidden patches."""
        if keep is not None:
            raise UserError("OpenCLIP's models take whole images; evaluate them without hidden patches")
        return self._model.encode_image((images / 255 - self._mean) / self._std, normalize=True)

    def encode_text(self, texts: Tensor) -> Tensor:
        """L2-normalised features (B, D) of int64 (B, context_length)."""
        return self._model.encode_text(texts, normalize=True)


@dataclass(frozen=True)
class Stock:
    """A loaded model of open_clip with what belongs to it."""

    model: StockModel
    tokenizer: Callable[[Sequence[str]], Tensor]
    image_size: int  # side of the squares that it takes, pixels
    published: ImportSource
    resizing: str | None
    """How its own preprocessing differs from flipscale's (shorter side, bicubic); None where it does not."""


def load_stock(source: str, device: torch.device) -> Stock:
    """Load `local-dir:PATH`, or `NAME:WEIGHTS` with a file or a tag that open_clip has downloaded before.

    Raises UserError for a name, a tag or a file that does not exist, and for weights that could run code.
    """
    published = find_stock(source)
    open_clip = import_open_clip()
    weights = published.weights or find_weights(published.directory or Path())
    read_weights(weights)  # before open_clip does, for the sake of what is damaged or could run code
    try:
        with _quiet():
            model = open_clip.create_model(published.stock, load_weights=False, pretrained_text=False)
            open_clip.load_checkpoint(model, str(weights))
            tokenizer = open_clip.get_tokenizer(published.stock)
    except (AssertionError, RuntimeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"open_clip cannot load {source} ({reason}); check that the weights belong to this shape"
        ) from error
    described = {
        **open_clip.get_model_preprocess_cfg(model),
        **published.config.get("preprocess_cfg", {}),
    }
    size = model.visual.image_size
    side, other = size if isinstance(size, (tuple, list)) else (size, size)
    if side != other:
        raise UserError(f"{source} takes images of {side} x {other} pixels; flipscale evaluates on squares")
    mean = described.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = described.get("std") or open_clip.OPENAI_DATASET_STD
    own = (described.get("interpolation") or "bicubic", described.get("resize_mode") or "shortest")
    resizing = None if own == ("bicubic", "shortest") else f"{own[1]}, {own[0]}"
    return Stock(StockModel(model, mean, std, device), tokenizer, int(side), published, resizing)


def find_stock(source: str) -> ImportSource:
    """What `source` names, without reading weights. Raises UserError as `load_stock` does."""
    if source.startswith(LOCAL):
        directory = Path(source.removeprefix(LOCAL))
        if not directory.is_dir():
            raise UserError(f"there is no directory {directory}; give {LOCAL}PATH of an OpenCLIP directory")
        return find_import_source(str(directory), None, None, random=False)
    name, _, weights = source.partition(":")
    open_clip = import_open_clip()
    if name.replace("/", "-") not in open_clip.list_models():
        near = ", ".join(_nearest(open_clip, source))
        raise UserError(
            f"{source} is neither a run, a checkpoint, an OpenCLIP directory nor a model of OpenCLIP; "
            f"nearest names: {near}"
        )
    if not weights:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))) or "none"
        raise UserError(f"{name} is a shape without weights; give {name}:TAG (of {tags}) or {name}:FILE")
    file = Path(weights)
    if file.exists() or file.suffix or len(file.parts) > 1:
        if not file.is_file():
            raise UserError(f"there is no file {file}; give {name}:FILE of weights, or {name}:TAG")
        return find_import_source(name, file, None, random=False)
    try:
        return find_import_source(name, None, weights, random=False)
    except UserError as error:  # it speaks of the option of `flipscale import`
        raise UserError(str(error).replace("a file with --weights", f"{name}:FILE")) from None


def _nearest(open_clip: Any, source: str) -> list[str]:
    """Names with their tags, as they are given here."""
    names = [f"{name}:{tag}" for name, tag in open_clip.list_pretrained()]
    return difflib.get_close_matches(source, names, n=4, cutoff=0.0)


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip says at length that it loads no weights, which are loaded next."""
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(before)
