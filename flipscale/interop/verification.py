"""Compare a model with stock OpenCLIP on random images, random texts and odd captions."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import flipscale
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.errors import RunError
from flipscale.interop.openclip_directory import finished_config
from flipscale.interop.openclip_state import StateDict
from flipscale.interop.tensor_files import load_tensors, save_tensors
from flipscale.interop.weights import loadable
from flipscale.models.flip import FLIP, MAX_LOG_SCALE, build_model
from flipscale.models.inputs import Inputs
from flipscale.scratch import scratch_directory

TOLERANCE = 1e-5
"""The largest absolute difference of a normalised feature in fp32."""

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
    """The largest absolute differences between a model and stock OpenCLIP loading its export (fp32)."""

    image_difference: float
    """The largest difference of an image feature."""
    text_difference: float
    """The largest difference of a text feature."""
    scale_difference: float
    """The difference of the logit scales, relative to the scale."""
    bias_difference: float
    """The difference of the logit biases; 0 if the model has none."""
    captions: int
    """The number of captions whose token ids were compared, all equal."""
    open_clip_version: str
    """The version of OpenCLIP that was compared with."""
    needed_help: bool = False
    """Whether torchvision does not fit torch here, so that a plain `import open_clip` fails."""


def verify_export(
    out: Path,
    model: FLIP,
    tokenizer: Tokenizer | None = None,
    *,
    captions: Sequence[str] = ODD_CAPTIONS,
    samples: int = 8,
) -> VerifyReport:
    """Compare a model with stock OpenCLIP loading its export; see `verify_against`.

    Args:
        out: The exported directory.
        model: The model.
        tokenizer: The model's tokenizer, whose ids are compared.
        captions: The captions to tokenize.
        samples: The number of random images and texts.

    Raises:
        ExportMismatch: If a feature differs by more than 1e-5, a token id differs, or the export does not
            load.
        UserError: If `out` is not a finished export.
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
    """Compare a model with one of stock OpenCLIP, offline and in another process, on random inputs.

    Ours takes bytes, OpenCLIP takes floats through its preprocessing, both in fp32 on the CPU.

    Args:
        stock: What OpenCLIP calls its model: a builtin name, or local-dir:PATH.
        model: Our model.
        tokenizer: The model's tokenizer, whose ids are compared.
        pretrained: The tag or the file of OpenCLIP's weights, for a builtin name.
        clip_scale: Clip OpenCLIP's scale at 100 before it is compared, as the model does with its own. The
            scale of others' weights may be larger; in half precision, rounding can make it so.
        captions: The captions to tokenize.
        samples: The number of random images and texts.

    Raises:
        ExportMismatch: If a feature differs by more than 1e-5, a token id differs, or it does not load.
    """
    reference = build_model(model.spec, device="meta").to_empty(device="cpu")
    reference.load_state_dict(model.state_dict())

    images, texts = _random_inputs(model, samples)
    tokenized = list(captions) if tokenizer is not None else []
    answers = _ask_open_clip(stock, pretrained, images, texts, tokenized)
    with torch.inference_mode():
        ours = reference(Inputs(images, texts))
    if (ours.bias is not None) != ("logit_bias" in answers):
        raise ExportMismatch(f"OpenCLIP loading {stock} and the model do not both have a logit bias")

    scale = answers["logit_scale"]
    if clip_scale:
        scale = scale.clamp(max=math.exp(MAX_LOG_SCALE))
    report = VerifyReport(
        image_difference=_difference(ours.images, answers["image_features"]),
        text_difference=_difference(ours.texts, answers["text_features"]),
        scale_difference=_difference(ours.scale, scale) / float(ours.scale),
        bias_difference=0.0 if ours.bias is None else _difference(ours.bias, answers["logit_bias"]),
        captions=len(tokenized),
        open_clip_version=importlib.metadata.version("open_clip_torch"),
        needed_help=bool(answers["needed_help"]),
    )

    _check_differences(report, stock)
    if tokenizer is not None:
        _compare_ids(tokenizer(tokenized), answers["token_ids"], tokenized)
    return report


def _random_inputs(model: FLIP, samples: int) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) of uint8 and token ids (B, context_length) of int64."""
    side = model.spec.vision.image_size
    text = model.spec.text
    random = torch.Generator().manual_seed(0)

    images = torch.randint(256, (samples, 3, side, side), dtype=torch.uint8, generator=random)
    texts = torch.randint(text.vocab_size, (samples, text.context_length), generator=random)
    return images, texts


def _ask_open_clip(
    stock: str, pretrained: str | None, images: Tensor, texts: Tensor, captions: list[str]
) -> StateDict:
    """Let a process of its own compute the features and token ids of stock OpenCLIP."""
    with scratch_directory() as work:
        if pretrained is not None and Path(pretrained).is_file():
            pretrained = str(loadable(Path(pretrained), work))
        question = {"model": stock, "pretrained": pretrained, "captions": captions}
        (work / "question.json").write_text(json.dumps(question), encoding="utf-8")
        save_tensors({"images": images, "texts": texts}, work / "inputs.safetensors")

        command = [sys.executable, "-m", "flipscale.interop.stock_features", str(work)]
        done = subprocess.run(
            command,
            env=_offline_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportMismatch(f"stock OpenCLIP could not use {stock}: {reason}")
        return load_tensors(work / "answers.safetensors")


def _offline_environment() -> dict[str, str]:
    source = str(Path(flipscale.__file__).parents[1])
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH")))),
    }


def _check_differences(report: VerifyReport, stock: str) -> None:
    differences = (
        report.image_difference,
        report.text_difference,
        report.scale_difference,
        report.bias_difference,
    )
    # Written so that a NaN fails, too.
    if not all(difference <= TOLERANCE for difference in differences):
        raise ExportMismatch(
            f"OpenCLIP loading {stock} differs from the model by more than {TOLERANCE}: {report}"
        )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def _compare_ids(ours: Tensor, theirs: Tensor, captions: Sequence[str]) -> None:
    if ours.shape != theirs.shape:
        raise ExportMismatch(f"token ids are {tuple(theirs.shape)} in OpenCLIP, {tuple(ours.shape)} here")

    for caption, own, other in zip(captions, ours, theirs, strict=True):
        if not torch.equal(own, other):
            own_ids = [int(number) for number in own]
            other_ids = [int(number) for number in other]
            raise ExportMismatch(f"caption {caption[:60]!r}: OpenCLIP's ids {other_ids}, ours {own_ids}")
