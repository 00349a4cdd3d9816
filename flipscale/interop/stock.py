"""Models of stock open_clip for evaluation, with their own towers, colours and tokenizer."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from flipscale.errors import UserError
from flipscale.interop.import_source import ImportSource, find_import_source, pretrained_tags
from flipscale.interop.openclip_directory import LOCAL, local_directory
from flipscale.interop.preprocessing import read_preprocessing
from flipscale.interop.stock_tokenizer import stock_tokenizer
from flipscale.interop.weights import find_weights, read_weights
from flipscale.third_party import import_open_clip


class StockModel:
    """A model that computes features for `evaluation.features` with open_clip's own code."""

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._model = model.to(device).eval()
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def encode_image(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the L2-normalised features of images.

        Args:
            images: uint8 tensor of shape (B, 3, S, S).
            keep: Must be None: these models take whole images.

        Returns:
            Tensor of shape (B, D).

        Raises:
            UserError: If patches are to be hidden.
        """
        if keep is not None:
            raise UserError("OpenCLIP's models take whole images; evaluate them without hidden patches")
        return self._model.encode_image((images / 255 - self._mean) / self._std, normalize=True)

    def encode_text(self, texts: Tensor) -> Tensor:
        """Return the L2-normalised features (B, D) of token ids, int64 of shape (B, context_length)."""
        return self._model.encode_text(texts, normalize=True)


@dataclass(frozen=True)
class LoadedStockModel:
    """A loaded model of open_clip with its tokenizer and its source."""

    model: StockModel
    tokenizer: Callable[[Sequence[str]], Tensor]
    image_size: int
    """Side in pixels of the square images that the model takes."""
    source: ImportSource
    resizing: str | None
    """The model's own preprocessing, if it differs from flipscale's (shorter side, bicubic); else None."""


def load_stock(source: str, device: torch.device) -> LoadedStockModel:
    """Load a model of stock open_clip.

    Args:
        source: `local-dir:PATH`, or `NAME:WEIGHTS` with a file or a tag that open_clip has downloaded before.
        device: The device of the model.

    Raises:
        UserError: If a name, a tag or a file does not exist, weights could run code, or open_clip cannot load
            them.
    """
    resolved = find_stock(source)
    open_clip: Any = import_open_clip()
    preprocessing = read_preprocessing(resolved.config)
    weights = resolved.weights or find_weights(resolved.directory or Path())
    read_weights(
        weights
    )  # before open_clip reads them: it refuses damaged files and code with a clear message

    try:
        with _quiet():
            model = open_clip.create_model(resolved.stock, load_weights=False, pretrained_text=False)
            open_clip.load_checkpoint(model, str(weights))
            tokenizer = stock_tokenizer(open_clip, resolved.stock)
    except Exception as error:  # whatever its libraries raise for a configuration that they cannot use
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"open_clip cannot load {source} ({reason}); check that the weights belong to this shape"
        ) from error

    usual = (preprocessing.resize_mode, preprocessing.interpolation) == ("shortest", "bicubic")
    resizing = None if usual else f"{preprocessing.resize_mode}, {preprocessing.interpolation}"

    side = _square_side(model.visual.image_size, source)
    loaded = StockModel(model, preprocessing.mean, preprocessing.std, device)
    return LoadedStockModel(loaded, tokenizer, side, resolved, resizing)


def _square_side(size: Any, source: str) -> int:
    height, width = cast("tuple[int, int]", size) if isinstance(size, (tuple, list)) else (size, size)
    if height != width:
        raise UserError(f"{source} takes images of {height} x {width} pixels; flipscale evaluates on squares")
    return int(height)


def find_stock(source: str) -> ImportSource:
    """Resolve the name of a model of stock open_clip without reading its weights.

    Args:
        source: As for `load_stock`.

    Raises:
        UserError: If a name, a tag or a file does not exist.
    """
    if source.startswith(LOCAL):
        directory = local_directory(source)
        if not directory.is_dir():
            raise UserError(f"there is no directory {directory}; give {LOCAL}PATH of an OpenCLIP directory")
        return find_import_source(str(directory), None, None, random=False)

    name, _, weights = source.partition(":")
    open_clip: Any = import_open_clip()
    if name.replace("/", "-") not in open_clip.list_models():
        near = ", ".join(_nearest(open_clip, source))
        raise UserError(
            f"{source} is neither a run, a checkpoint, an OpenCLIP directory nor a model of OpenCLIP; "
            f"nearest names: {near}"
        )
    if not weights:
        tags = ", ".join(pretrained_tags(open_clip, name.replace("/", "-"))) or "none"
        raise UserError(f"{name} is a shape without weights; give {name}:TAG (of {tags}) or {name}:FILE")

    file = Path(weights)
    if file.exists() or file.suffix or len(file.parts) > 1:
        if not file.is_file():
            raise UserError(f"there is no file {file}; give {name}:FILE of weights, or {name}:TAG")
        return find_import_source(name, file, None, random=False)
    try:
        return find_import_source(name, None, weights, random=False)
    except UserError as error:
        # The message names the option of `flipscale import`; here the file is part of the name.
        raise UserError(str(error).replace("a file with --weights", f"{name}:FILE")) from None


def _nearest(open_clip: Any, source: str) -> list[str]:
    """Return the nearest names with their tags, in the form NAME:TAG."""
    names = [f"{name}:{tag}" for name, tag in open_clip.list_pretrained()]
    return difflib.get_close_matches(source, names, n=4, cutoff=0.0)


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silence open_clip's long warning that it loads no weights, which are loaded next."""
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(before)
