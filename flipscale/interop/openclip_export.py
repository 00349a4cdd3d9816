"""Write a model as a directory that stock OpenCLIP (>= 3.0) loads offline."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flipscale
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.errors import UserError
from flipscale.files import check_writable, write_durably
from flipscale.interop.model_card import model_card
from flipscale.interop.openclip_config import open_clip_model_cfg
from flipscale.interop.openclip_directory import (
    BIAS_KEY,
    CARD,
    CLASSIC,
    CLASSIC_CONFIG,
    TOKENIZER,
    TOKENIZER_FILES,
    read_config,
    write_config,
)
from flipscale.interop.openclip_state import open_clip_state
from flipscale.interop.tensor_files import save_archive, save_tensors
from flipscale.interop.weights import WEIGHTS
from flipscale.models.flip import FLIP
from flipscale.models.presets import ModelSpec
from flipscale.staging import check_new, staged_directory


def export_openclip(
    model: FLIP | Mapping[str, Tensor],
    spec: ModelSpec,
    out: Path,
    *,
    tokenizer: Tokenizer | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write an OpenCLIP directory: configuration, fp32 weights, tokenizer, classic .pt, model card.

    The configuration is written last and as a whole. An interrupted export therefore does not load, and can
    be repeated.

    Args:
        model: The model, or its state dict.
        spec: The model's shape.
        out: A new or empty directory, or an earlier export, which is replaced.
        tokenizer: The tokenizer of the training; its files go into the directory.
        provenance: JSON values for the configuration's `flipscale` block and the model card.

    Raises:
        UserError: If `out` is something else, or the tokenizer does not belong to the model.
    """
    if tokenizer is not None:
        _check_tokenizer(tokenizer, spec)

    origin = dict(provenance or {})
    stamp = {"version": flipscale.__version__, "model": spec.name, "provenance": origin}
    json.dumps(stamp)  # fails here rather than at the end

    with _place(out) as directory:
        _write_weights(directory, model.state_dict() if isinstance(model, FLIP) else model, spec)
        if tokenizer is not None:
            tokenizer.save(directory)
        write_durably(directory / CARD, model_card(spec, origin))

        # The configuration comes last: with it the directory loads.
        wordpiece = _is_wordpiece(directory, spec, tokenizer)
        write_config(directory, {**_config(spec, wordpiece=wordpiece), "flipscale": stamp})


def _check_tokenizer(tokenizer: Tokenizer, spec: ModelSpec) -> None:
    if tokenizer.context_length != spec.text.context_length or tokenizer.vocab_size > spec.text.vocab_size:
        raise UserError(
            f"the tokenizer gives {tokenizer.context_length} ids below {tokenizer.vocab_size}, but the model "
            f"takes {spec.text.context_length} below {spec.text.vocab_size}; export with the run's tokenizer"
        )


def check_place(out: Path) -> None:
    """Check that an export can be written, before a model is read for it.

    Raises:
        UserError: If `out` is neither new, nor empty, nor an earlier export, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a directory to export into")
    if not out.exists() or not any(out.iterdir()):
        check_new(out, "OUT")
        return

    if "flipscale" not in read_config(out):
        raise UserError(f"{out} is not empty and not an earlier flipscale export; name another directory")
    check_writable(out / CARD, "OUT")


@contextmanager
def _place(out: Path) -> Generator[Path]:
    """Give the directory to write into: a new one, which gets its name at the end, or an earlier export.

    An earlier export may hold files of others, so that it is not replaced as a whole.
    """
    check_place(out)
    if not out.exists() or not any(out.iterdir()):
        with staged_directory(out) as work:
            yield work
        return

    # Mark the directory before its old files go: an interruption must not leave half of an export that loads.
    write_config(out, {"flipscale": {"version": flipscale.__version__, "unfinished": True}})
    for name in (WEIGHTS, CLASSIC, CLASSIC_CONFIG, CARD, *TOKENIZER_FILES):
        (out / name).unlink(missing_ok=True)
    yield out


def _write_weights(out: Path, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
    tensors = open_clip_state(state, spec)

    header = {"format": "pt"}
    if spec.vision.patch_bias:
        bias = state["visual.conv1.bias"].detach().to("cpu", torch.float32)
        header[BIAS_KEY] = base64.b64encode(bias.numpy().astype("<f4").tobytes()).decode()

    save_tensors(tensors, out / WEIGHTS, header)
    (out / CLASSIC).parent.mkdir(exist_ok=True)
    save_archive({"name": spec.name, "state_dict": tensors}, out / CLASSIC)
    write_durably(out / CLASSIC_CONFIG, json.dumps(open_clip_model_cfg(spec), indent=2) + "\n")


def _config(spec: ModelSpec, wordpiece: bool) -> dict[str, Any]:
    model_cfg = open_clip_model_cfg(spec)
    if wordpiece:
        # Any name selects the files in the directory; without one OpenCLIP silently takes CLIP's tokenizer.
        model_cfg["text_cfg"]["hf_tokenizer_name"] = "bert-base-uncased"

    preprocess = {
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess}


def _is_wordpiece(out: Path, spec: ModelSpec, tokenizer: Tokenizer | None) -> bool:
    if tokenizer is None:
        return spec.text.pool == "first"
    return (out / TOKENIZER).exists()
