"""Labelled images that a random tower can partly classify, and a model in an OpenCLIP directory."""

from pathlib import Path

import numpy as np
from support.evaluation_samples import encoded, write_tar
from support.shards import tiny_tokenizer

from flipscale.interop.openclip_export import export_openclip
from flipscale.models.flip import build_model
from flipscale.models.presets import preset


def picture(label: int, number: int, classes: int) -> bytes:
    """Noise of 40 x 36 pixels with a tint that hints at the class."""
    random = np.random.default_rng([label, number])
    tint = 60 * np.cos(2 * np.pi * (label / classes + np.arange(3) / 3))
    pixels = random.normal(128 + tint + random.normal(0, 30, 3), 40, (36, 40, 3))
    return encoded(pixels.clip(0, 255).astype(np.uint8))


def labelled_tar(path: Path, classes: int, each: int, first: int = 0) -> str:
    """A shard with `each` pictures per class, from number `first` on; the classes take turns."""
    members: list[tuple[str, bytes]] = []
    for number in range(first, first + each):
        for label in range(classes):
            key = f"{number:03}{label:03}"
            members += [(f"{key}.png", picture(label, number, classes)), (f"{key}.cls", b"%d" % label)]
    return str(write_tar(path, members))


def labelled_folder(root: Path, names: list[str], each: int) -> str:
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(each):
            (root / name / f"{number}.png").write_bytes(picture(label, number, len(names)))
    return str(root)


def exported_model(out: Path) -> Path:
    """A tiny FLIP model with random weights."""
    tokenizer = tiny_tokenizer()
    spec = preset("vit_micro_p8", vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length)
    export_openclip(build_model(spec), spec, out, tokenizer=tokenizer)
    return out
