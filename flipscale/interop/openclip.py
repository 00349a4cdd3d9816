"""Models out to a directory that stock OpenCLIP (>= 3.0) loads offline, checked against it, and back in."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import flipscale
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.errors import RunError, UserError
from flipscale.interop.mapping import (
    StateDict,
    flipscale_state,
    open_clip_model_cfg,
    open_clip_state,
    spec_of_open_clip,
)
from flipscale.interop.model_card import model_card
from flipscale.interop.weights import WEIGHTS, Weights, find_weights, loadable, read_weights
from flipscale.models.flip import FLIP, MAX_LOG_SCALE, build_model
from flipscale.models.presets import ModelSpec

CONFIG = "open_clip_config.json"
# In a folder of its own: OpenCLIP takes weights it finds in the directory itself.
CLASSIC = "classic/open_clip.pt"
CARD = "README.md"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_FILES = (_TOKENIZER, "tokenizer_config.json")
_BIAS_KEY = "flipscale.patch_bias"  # in the header of the weights, which OpenCLIP does not read

TOLERANCE = 1e-5  # max abs difference of a normalised feature, fp32

ODD_CAPTIONS = (
    "a small red star left of a striped blue circle",
    "",
    "Caf\u00e9 M\u00dcNCHEN, na\u00efve \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 emoji",
    "Tom &amp; Jerry &lt;b&gt;bold&lt;/b&gt; &amp;amp; &#39;quotes&#39;",
    "  white \t space \n everywhere  ",
    "\u4e2d\u6587\u6807\u9898 and \u0440\u0443\u0441\u0441\u043a\u0438\u0439 123,456.78 $9.99",
    "supercalifragilisticexpialidocious" * 5,
    " ".join(f"word{i}" for i in range(200)),
)


class ExportMismatch(RunError):
    """Stock OpenCLIP, loading the export, does not compute what the trained model computes."""


@dataclass(frozen=True)
class VerifyReport:
    """Largest absolute differences between the model and stock OpenCLIP loading its export (fp32)."""

    image_difference: float
    text_difference: float
    scale_difference: float
    """Relative."""
    bias_difference: float
    """0 where the model has no logit bias."""
    captions: int
    """Captions whose token ids were compared, all equal."""
    open_clip_version: str


def export_openclip(
    model: FLIP | Mapping[str, Tensor],
    spec: ModelSpec,
    out: Path,
    *,
    tokenizer: Tokenizer | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write an OpenCLIP directory: configuration, fp32 weights, tokenizer, classic .pt, model card.

    The configuration comes last and whole, so that an interrupted export does not load and can be repeated.

    Args:
        model: or its state dict.
        spec: of the model.
        out: a new or empty directory, or an earlier export, which is replaced.
        tokenizer: the one trained with; its files go into the directory.
        provenance: JSON values for the configuration's `flipscale` block and the model card.

    Raises:
        UserError: `out` is something else, or the tokenizer does not belong to the model.
    """
    if tokenizer is not None:
        _check_tokenizer(tokenizer, spec)
    stamp = {"version": flipscale.__version__, "model": spec.name, "provenance": dict(provenance or {})}
    json.dumps(stamp)  # fails here rather than at the end
    _prepare(out)
    state = model.state_dict() if isinstance(model, FLIP) else model
    tensors = open_clip_state(state, spec)
    header = {"format": "pt"}
    if spec.vision.patch_bias:
        bias = state["visual.conv1.bias"].detach().to("cpu", torch.float32)
        header[_BIAS_KEY] = base64.b64encode(bias.numpy().astype("<f4").tobytes()).decode()
    save_file(tensors, out / WEIGHTS, metadata=header)
    (out / CLASSIC).parent.mkdir(exist_ok=True)
    torch.save({"name": spec.name, "state_dict": tensors}, out / CLASSIC)
    if tokenizer is not None:
        tokenizer.save(out)
    (out / CARD).write_text(model_card(spec, stamp["provenance"]), encoding="utf-8")
    _write_config(out, {**_config(spec, wordpiece=_is_wordpiece(out, spec, tokenizer)), "flipscale": stamp})


def _check_tokenizer(tokenizer: Tokenizer, spec: ModelSpec) -> None:
    if tokenizer.context_length != spec.text.context_length or tokenizer.vocab_size > spec.text.vocab_size:
        raise UserError(
            f"the tokenizer gives {tokenizer.context_length} ids below {tokenizer.vocab_size}, but the model "
            f"takes {spec.text.context_length} below {spec.text.vocab_size}; export with the run's tokenizer"
        )


def _prepare(out: Path) -> None:
    """Make `out` an empty directory marked as an unfinished export."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a directory to export into")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and "flipscale" not in _read_config(out):
        raise UserError(f"{out} is not empty and not an earlier flipscale export; name another directory")
    _write_config(out, {"flipscale": {"version": flipscale.__version__, "unfinished": True}})
    for name in (WEIGHTS, CLASSIC, CARD, *_TOKENIZER_FILES):
        (out / name).unlink(missing_ok=True)


def _read_config(directory: Path) -> dict[str, Any]:
    """The configuration of an OpenCLIP directory; empty where there is none."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{directory / CONFIG} is no JSON ({error}); restore or remove it") from error
    return config if isinstance(config, dict) else {}


def finished_config(directory: Path) -> dict[str, Any]:
    """The `open_clip_config.json` of a directory. Raises UserError where it is missing or unfinished."""
    config = _read_config(directory)
    if "model_cfg" not in config:
        raise UserError(f"{directory} holds no finished {CONFIG}; name a directory that OpenCLIP can load")
    return config


def _write_config(out: Path, config: Mapping[str, Any]) -> None:
    partial = out / f"{CONFIG}.partial"
    partial.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, out / CONFIG)


def _config(spec: ModelSpec, wordpiece: bool) -> dict[str, Any]:
    model_cfg = open_clip_model_cfg(spec)
    if wordpiece:
        # Any name selects the files beside it; without one OpenCLIP silently takes CLIP's own tokenizer.
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
    return (out / _TOKENIZER).exists()


def verify_export(
    out: Path,
    model: FLIP,
    tokenizer: Tokenizer | None = None,
    *,
    captions: Sequence[str] = ODD_CAPTIONS,
    samples: int = 8,
) -> VerifyReport:
    """Compare the model with stock OpenCLIP loading the export `out`; see `verify_against`.

    Raises:
        ExportMismatch: a feature differs by more than 1e-5, a token id differs, or the export does not load.
        UserError: `out` is no finished export.
    """
    finished_config(out)
    return verify_against(f"local-dir:{out.resolve()}", model, tokenizer, captions=captions, samples=samples)


def verify_against(
    stock: str,
    model: FLIP,
    tokenizer: Tokenizer | None = None,
    *,
    pretrained: str | None = None,
    clip_scale: bool = False,
    captions: Sequence[str] = ODD_CAPTIONS,
    samples: int = 8,
) -> VerifyReport:
    """Compare the model with one of stock OpenCLIP, offline and in another process, on random inputs.

    Ours takes bytes, OpenCLIP floats through its preprocessing, both in fp32 on the CPU.

    Args:
        stock: what OpenCLIP calls it: a builtin name, or local-dir:PATH.
        pretrained: its tag or file of weights, for a builtin name.
        clip_scale: clip OpenCLIP's scale at 100 before it is compared, as the model does with its own: that
            of others' weights may lie beyond, in half precision by its rounding alone.

    Raises:
        ExportMismatch: a feature differs by more than 1e-5, a token id differs, or it does not load.
    """
    reference = build_model(model.spec, device="meta").to_empty(device="cpu")
    reference.load_state_dict(model.state_dict())
    side = model.spec.vision.image_size
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (samples, 3, side, side), dtype=torch.uint8, generator=random)
    texts = torch.randint(
        model.spec.text.vocab_size, (samples, model.spec.text.context_length), generator=random
    )
    asked = list(captions) if tokenizer is not None else []
    answers = _ask_open_clip(stock, pretrained, images, texts, asked)
    scale = answers["logit_scale"]
    if clip_scale:
        scale = scale.clamp(max=math.exp(MAX_LOG_SCALE))
    with torch.inference_mode():
        ours = reference(images, texts)
    if (ours.bias is not None) != ("logit_bias" in answers):
        raise ExportMismatch(f"OpenCLIP loading {stock} and the model do not both have a logit bias")
    report = VerifyReport(
        image_difference=_difference(ours.images, answers["image_features"]),
        text_difference=_difference(ours.texts, answers["text_features"]),
        scale_difference=_difference(ours.scale, scale) / float(ours.scale),
        bias_difference=0.0 if ours.bias is None else _difference(ours.bias, answers["logit_bias"]),
        captions=len(asked),
        open_clip_version=importlib.metadata.version("open_clip_torch"),
    )
    differences = (
        report.image_difference,
        report.text_difference,
        report.scale_difference,
        report.bias_difference,
    )
    if not all(difference <= TOLERANCE for difference in differences):  # a NaN fails, too
        raise ExportMismatch(
            f"OpenCLIP loading {stock} differs from the model by more than {TOLERANCE}: {report}"
        )
    if tokenizer is not None:
        _compare_ids(tokenizer(asked), answers["token_ids"], asked)
    return report


def _ask_open_clip(
    stock: str, pretrained: str | None, images: Tensor, texts: Tensor, captions: list[str]
) -> StateDict:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        save_file({"images": images, "texts": texts}, work / "inputs.safetensors")
        if pretrained is not None and Path(pretrained).is_file():
            pretrained = str(loadable(Path(pretrained), work))
        question = {"model": stock, "pretrained": pretrained, "captions": captions}
        (work / "question.json").write_text(json.dumps(question), encoding="utf-8")
        source = str(Path(flipscale.__file__).parents[1])
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH")))),
        }
        command = [sys.executable, "-m", "flipscale.interop.stock_features", directory]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportMismatch(f"stock OpenCLIP could not use {stock}: {reason}")
        return load_file(work / "answers.safetensors")


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def _compare_ids(ours: Tensor, theirs: Tensor, captions: Sequence[str]) -> None:
    if ours.shape != theirs.shape:
        raise ExportMismatch(f"token ids are {tuple(theirs.shape)} in OpenCLIP, {tuple(ours.shape)} here")
    for caption, mine, other in zip(captions, ours, theirs, strict=True):
        if not torch.equal(mine, other):
            raise ExportMismatch(
                f"caption {caption[:60]!r}: OpenCLIP's ids {other.tolist()}, ours {mine.tolist()}"
            )


def import_openclip(source: Path) -> tuple[ModelSpec, StateDict]:
    """Read an OpenCLIP directory: the inverse of `export_openclip`, bit for bit; also others' models.

    Raises:
        UserError: no such model, unsafe or damaged weights, or a feature that flipscale's towers lack.
    """
    config = finished_config(source)
    return imported(config, read_weights(find_weights(source)), source.name)


def imported(config: Mapping[str, Any], weights: Weights | None, name: str) -> tuple[ModelSpec, StateDict]:
    """Spec and state dict (empty without weights) of a model that OpenCLIP configures so.

    Args:
        config: the parsed `open_clip_config.json`.
        name: for the spec of a model that flipscale did not write.

    Raises:
        UserError: a feature that flipscale's towers lack, or weights of another shape.
    """
    name = config.get("flipscale", {}).get("model", name)
    if weights is None:
        return spec_of_open_clip(config, None, None, name), {}
    bias = None
    if encoded := weights.header.get(_BIAS_KEY):
        bias = torch.frombuffer(bytearray(base64.b64decode(encoded)), dtype=torch.float32)
    spec = spec_of_open_clip(config, weights.tensors, bias, name)
    return spec, flipscale_state(weights.tensors, spec, bias)
