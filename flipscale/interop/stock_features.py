"""Compute features with stock open_clip: run as `python -m flipscale.interop.stock_features WORK`.

It runs in a process of its own. Only a fresh process is sure to be offline (the hub library reads
HF_HUB_OFFLINE once, on import) and to share nothing with the trainer.

WORK/question.json names the model (a builtin name or local-dir:PATH), its pretrained weights and captions.
WORK/inputs.safetensors holds `images` (bytes) and `texts` (ids). The answer is WORK/answers.safetensors.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from flipscale.interop.stock_tokenizer import stock_tokenizer
from flipscale.interop.tensor_files import load_tensors, save_tensors
from flipscale.third_party import import_open_clip, torchvision_fits


def write_stock_features(work: Path) -> None:
    """Load a model as any user would, and write its features of the inputs and its ids of the captions.

    Args:
        work: The directory with the question and the inputs; the answers go there as well.
    """
    gc.set_threshold(100_000, 20)  # as in the command: imports make hardly any garbage
    open_clip: Any = import_open_clip()
    question = json.loads((work / "question.json").read_text(encoding="utf-8"))
    name = question["model"]
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=question["pretrained"])
    model.eval()

    inputs = load_tensors(work / "inputs.safetensors")
    images = [preprocess(Image.fromarray(pixels.permute(1, 2, 0).numpy())) for pixels in inputs["images"]]
    with torch.inference_mode():
        answers = {
            "image_features": model.encode_image(torch.stack(images), normalize=True),
            "text_features": model.encode_text(inputs["texts"], normalize=True),
            "logit_scale": model.logit_scale.exp(),
        }
    if getattr(model, "logit_bias", None) is not None:
        answers["logit_bias"] = model.logit_bias.detach()
    answers["needed_help"] = torch.tensor(not torchvision_fits())
    if question["captions"]:
        answers["token_ids"] = stock_tokenizer(open_clip, name)(question["captions"])

    contiguous = {key: tensor.contiguous() for key, tensor in answers.items()}
    save_tensors(contiguous, work / "answers.safetensors")


if __name__ == "__main__":
    write_stock_features(Path(sys.argv[1]))
