"""Stock open_clip as the judge of a model: run as `python -m flipscale.interop.stock_features WORK`.

A process of its own, since only a fresh one is sure to be offline (the hub library reads HF_HUB_OFFLINE
once, when it is imported) and to see nothing of the trainer. WORK/question.json names the model (a builtin
name or local-dir:PATH), its pretrained weights and captions; WORK/inputs.safetensors holds `images` (bytes)
and `texts` (ids); the answer is WORK/answers.safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flipscale.third_party import import_open_clip


def write_stock_features(work: Path) -> None:
    """Load the model as any user would, and write its features of the inputs and ids of the captions."""
    open_clip = import_open_clip()
    question = json.loads((work / "question.json").read_text(encoding="utf-8"))
    name, captions = question["model"], question["captions"]
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=question["pretrained"])
    model.eval()
    inputs = load_file(work / "inputs.safetensors")
    images = [preprocess(Image.fromarray(pixels.permute(1, 2, 0).numpy())) for pixels in inputs["images"]]
    with torch.inference_mode():
        answers = {
            "image_features": model.encode_image(torch.stack(images), normalize=True),
            "text_features": model.encode_text(inputs["texts"], normalize=True),
            "logit_scale": model.logit_scale.exp(),
        }
    if getattr(model, "logit_bias", None) is not None:
        answers["logit_bias"] = model.logit_bias.detach()
    if captions:
        answers["token_ids"] = open_clip.get_tokenizer(name)(captions)
    save_file({name: tensor.contiguous() for name, tensor in answers.items()}, work / "answers.safetensors")


if __name__ == "__main__":
    write_stock_features(Path(sys.argv[1]))
