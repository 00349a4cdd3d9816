"""The files that describe a rendered data set: class names, templates, classes and README."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flipscale.data.synthetic.vocabulary import CLASSES, COLOURS, HELD_OUT, PROMPT_TEMPLATES, SEEN, SHAPES

DESCRIPTIONS = ("classnames.txt", "templates.txt", "classes.json", "README.md")
"""The names of the files, in the order in which they are written."""

_CONTENTS = {
    "train": "1 to 3 objects, captions",
    "val": "like train, for retrieval",
    "test": "one object of a seen pair, with its class",
    "test_heldout": "one object of a held-out pair, with its class",
}


@dataclass(frozen=True)
class SyntheticSplit:
    """One split as written, and how many samples and bytes its shards hold."""

    name: str
    pattern: str  # the shards as a path with braces
    shards: int
    samples: int
    bytes: int


def write_descriptions(out: Path, splits: Sequence[SyntheticSplit], image_size: int, seed: int) -> None:
    """Write the files to the data set's directory `out`; README.md comes last."""
    names = [f"{colour} {shape}" for colour, shape in CLASSES]
    (out / "classnames.txt").write_text("\n".join(names) + "\n")
    (out / "templates.txt").write_text("\n".join(PROMPT_TEMPLATES) + "\n")

    classes = [
        {"index": index, "name": name, "colour": pair[0], "shape": pair[1], "held_out": pair in HELD_OUT}
        for index, (name, pair) in enumerate(zip(names, CLASSES, strict=True))
    ]
    (out / "classes.json").write_text(json.dumps(classes, indent=1) + "\n")
    (out / "README.md").write_text(_readme(splits, image_size, seed))


def _readme(splits: Sequence[SyntheticSplit], image_size: int, seed: int) -> str:
    rows = "\n".join(
        f"| {split.name} | {split.samples} | {split.shards} | {split.bytes} | {_CONTENTS[split.name]} |"
        for split in splits
    )
    held_out = ", ".join(f"{colour} {shape}" for colour, shape in HELD_OUT)
    return f"""# Rendered scenes with captions

Made by `flipscale data synth`: JPEGs of {image_size} x {image_size} pixels, seed {seed}. Every sample is a
pure function of (seed, split, sample number).

| split | samples | shards | bytes | what |
| --- | --- | --- | --- | --- |
{rows}

Plain webdataset tars. A sample `KEY` has `KEY.jpg`, `KEY.txt` (the caption), `KEY.json` (what was drawn:
objects with colour, shape, texture, size and box in pixels, the relation of the first object to the others,
the background), and in the test splits `KEY.cls`, the class index.

- {len(SHAPES)} shapes: {", ".join(SHAPES)}.
- {len(COLOURS)} colours: {", ".join(COLOURS)}.
- {len(CLASSES)} classes, one per line in `classnames.txt` (line 1 is class 0); {len(SEEN)} occur in training.
- {len(HELD_OUT)} held-out pairs, only in `test_heldout`: {held_out}. `classes.json` marks them.
- `templates.txt`: zero-shot prompts, `{{}}` stands for the class name.
- "left of" and "right of" are in the captions: train without horizontal flips.
- Size words compare objects of one kind of scene: next to another object, a large one is smaller.
"""
