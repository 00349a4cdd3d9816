"""The README.md of an exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flipscale.interop.openclip_directory import CLASSIC_NAME
from flipscale.models.presets import ModelSpec

_CARD = """\
---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags: [clip, {family}]
---
# {name}

A contrastive image-text model ({family_in_words}), stored by flipscale for
[OpenCLIP](https://github.com/mlfoundations/open_clip) 3.0 or newer. With this directory at `MODEL`:

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:MODEL")
tokenizer = open_clip.get_tokenizer("local-dir:MODEL")
model.eval()
```

| | image tower | text tower |
|---|---|---|
| width | {vision.width} | {text.width} |
| layers | {vision.layers} | {text.layers} |
| heads | {vision.heads} | {text.heads} |
| input | {vision.image_size} px in patches of {vision.patch_size} px | {text.context_length} tokens |
| vocabulary | | {text.vocab_size} |
| feature | {image_feature} | {text_feature} |

Programs that know no `local-dir:` take the weights in `classic/`. They hold no preprocessing: without its
mean and deviation OpenCLIP silently normalises with OpenAI's.

```python
open_clip.add_model_config("MODEL/classic")
model, _, preprocess = open_clip.create_model_and_transforms(
    "{classic_name}",
    pretrained="MODEL/classic/open_clip.pt",
    image_mean={mean},
    image_std={std},
)
```

Both features have {embed_dim} dimensions. `preprocess` normalises pixels with mean {mean} and
standard deviation {std}.

## Where it comes from
{provenance}
"""

_IMAGE_FEATURES = {
    "patch_mean": "mean of the patch tokens after the final norm",
    "class_token": "class token after the final norm",
}
_TEXT_FEATURES = {"first": "first position ([CLS])", "argmax": "position of the largest id (end of text)"}
_FAMILIES = {
    "flip": "FLIP: CLIP trained on masked images, arXiv 2212.00794",
    "clip": "CLIP, arXiv 2103.00020",
}


def model_card(spec: ModelSpec, provenance: Mapping[str, Any]) -> str:
    """Return a model card in Markdown: how to load the model, its shape, and its provenance.

    Args:
        spec: The model's shape.
        provenance: JSON values for the table of where the model comes from.
    """
    return _CARD.format(
        name=spec.name,
        family=spec.family,
        family_in_words=_FAMILIES[spec.family],
        vision=spec.vision,
        text=spec.text,
        image_feature=_IMAGE_FEATURES[spec.vision.pool],
        text_feature=_TEXT_FEATURES[spec.text.pool],
        embed_dim=spec.embed_dim,
        classic_name=CLASSIC_NAME,
        mean=list(spec.mean),
        std=list(spec.std),
        provenance=_table(provenance) if provenance else "Not recorded.",
    )


def _table(values: Mapping[str, Any]) -> str:
    rows = (f"| {_cell(key)} | {_cell(value)} |" for key, value in values.items())
    return "\n".join(("| | |", "|---|---|", *rows))


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split()).replace("|", "\\|")
