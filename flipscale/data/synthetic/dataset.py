"""A made captioned data set: rendered scenes in webdataset tars, as img2dataset writes them.

    OUT/train/00000.tar ...          1 to 3 objects and a caption each
    OUT/val/00000.tar ...            the same, for retrieval
    OUT/test/00000.tar ...           one object of a seen colour-shape pair, with its class
    OUT/test_heldout/00000.tar ...   one object of a pair that no other split holds, with its class
    OUT/classnames.txt  OUT/templates.txt  OUT/classes.json  OUT/README.md

A sample is a pure function of (seed, split, sample number): neither the number of worker processes nor the
counts of other splits change a byte of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from flipscale.data.synthetic.rendering import bounding_box, render
from flipscale.data.synthetic.scenes import (
    CLASSES,
    COLOURS,
    HELD_OUT,
    PROMPT_TEMPLATES,
    SEEN,
    SHAPES,
    Scene,
    caption,
    draw_scene,
    draw_single,
)
from flipscale.errors import UserError

MIN_IMAGE_SIZE = 16  # pixels; below it the shapes are blots
MAX_SHARD_SIZE = 10_000  # img2dataset's keys have five digits for the shard and four for the place in it
_DESCRIPTIONS = ("classnames.txt", "templates.txt", "classes.json", "README.md")
_CLASS_OF_SPLIT = {"test": SEEN, "test_heldout": HELD_OUT}


@dataclass(frozen=True)
class SyntheticSplit:
    """One split as written: its shards as a path with braces, and how many samples and bytes they hold."""

    name: str
    pattern: str
    shards: int
    samples: int
    bytes: int


@dataclass(frozen=True)
class SyntheticSummary:
    """What `synthesize` wrote; a split of 0 samples is left out of `splits`."""

    root: Path
    splits: tuple[SyntheticSplit, ...]
    classnames: Path
    templates: Path

    @property
    def samples(self) -> int:
        return sum(split.samples for split in self.splits)


@dataclass(frozen=True)
class _Shard:
    """One tar to be written: samples `start` up to `stop` of a split."""

    path: Path
    split: str
    number: int
    start: int
    stop: int


def synthesize(
    out: Path,
    *,
    image_size: int = 64,
    train: int = 20_000,
    val: int = 1_000,
    test: int = 2_000,
    shard_size: int = 1_000,
    seed: int = 0,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> SyntheticSummary:
    """Writes the data set into the empty or new directory `out`; README.md comes last and marks it complete.

    `image_size` is in pixels, the counts in samples. `test_heldout` gets as many images a class as `test`.
    `workers` > 0 writes shards in that many processes; `progress` is called with the number of samples of
    each shard done. Raises UserError for sizes or counts out of range and for an `out` that holds something.
    """
    _check(image_size, {"train": train, "val": val, "test": test}, shard_size, workers)
    _claim(out)
    heldout = -(-test * len(HELD_OUT) // len(SEEN))
    counts = {"train": train, "val": val, "test": test, "test_heldout": heldout}
    shards = [shard for split, count in counts.items() for shard in _plan(out, split, count, shard_size)]
    sizes: dict[_Shard, int] = {}

    def note(shard: _Shard, size: int) -> None:
        sizes[shard] = size
        if progress is not None:
            progress(shard.stop - shard.start)

    folders = [out / split for split, count in counts.items() if count]
    for folder in folders:
        folder.mkdir()
    try:
        _write_shards(shards, image_size, seed, workers, note)
        splits = tuple(_summarize(out, split, sizes) for split, count in counts.items() if count)
        _write_descriptions(out, splits, image_size, seed)
    except BaseException as error:  # Ctrl-C too: what is half written would stop the next try
        for folder in folders:
            shutil.rmtree(folder)
        for name in _DESCRIPTIONS:
            (out / name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(
                f"{out} can't be written ({error}): free space or name another directory"
            ) from error
        raise
    return SyntheticSummary(out, splits, out / "classnames.txt", out / "templates.txt")


def make_sample(seed: int, split: str, number: int, image_size: int) -> tuple[Scene, str, bytes]:
    """Scene, caption and JPEG of one sample; a pure function of its arguments."""
    # Python keeps seeding by text (SHA-512) and random() stable between versions.
    rng = Random(f"{seed}/{split}/{number}")
    classes = _CLASS_OF_SPLIT.get(split)
    scene = draw_scene(rng) if classes is None else draw_single(rng, classes[number % len(classes)])
    text = caption(rng, scene)
    jpeg = io.BytesIO()
    render(scene, image_size).save(jpeg, "JPEG", quality=rng.randint(82, 95))
    return scene, text, jpeg.getvalue()


def _check(image_size: int, counts: dict[str, int], shard_size: int, workers: int) -> None:
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(
            f"size is {image_size} pixels, but shapes need at least {MIN_IMAGE_SIZE}: give a larger --size"
        )
    for split, count in counts.items():
        if count < 0:
            raise UserError(f"{split} is {count} samples: give --{split} 0 or more")
    if counts["train"] == 0:
        raise UserError("train is 0 samples: give --train 1 or more")
    if not 1 <= shard_size <= MAX_SHARD_SIZE:
        raise UserError(f"shard size is {shard_size} samples: give 1 to {MAX_SHARD_SIZE}")
    if workers < 0:
        raise UserError(f"workers is {workers}: give 0 (no extra process) or more")


def _claim(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = next(out.iterdir(), None)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{out} can't be made a directory since a file is in its place: name another directory"
        ) from error
    except PermissionError as error:
        raise UserError(f"{out} can't be written by this user: name another directory") from error
    if held is not None:
        raise UserError(f"{out} is not empty (it holds {held.name}): name a new directory or empty this one")


def _plan(out: Path, split: str, count: int, shard_size: int) -> list[_Shard]:
    starts = range(0, count, shard_size)
    return [
        _Shard(out / split / f"{number:05d}.tar", split, number, start, min(start + shard_size, count))
        for number, start in enumerate(starts)
    ]


def _write_shards(
    shards: list[_Shard], image_size: int, seed: int, workers: int, note: Callable[[_Shard, int], None]
) -> None:
    """Writes all shards and tells `note` the size in bytes of each one done, in any order."""
    if workers == 0:
        for shard in shards:
            note(shard, _write_shard(shard, image_size, seed))
        return
    # Fresh processes, not forks: the caller may hold threads and locks.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_write_shard, shard, image_size, seed): shard for shard in shards}
        try:
            for future in as_completed(futures):
                note(futures[future], future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _write_shard(shard: _Shard, image_size: int, seed: int) -> int:
    """Writes one tar and returns its size in bytes. Owner, time and order of its members are fixed."""
    with tarfile.open(shard.path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(shard.start, shard.stop):
            key = f"{shard.number:05d}{number - shard.start:04d}"
            for extension, content in sorted(_members(seed, shard.split, number, image_size, key).items()):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size, member.mode = len(content), 0o444
                tar.addfile(member, io.BytesIO(content))
    return shard.path.stat().st_size


def _members(seed: int, split: str, number: int, image_size: int, key: str) -> dict[str, bytes]:
    scene, text, jpeg = make_sample(seed, split, number, image_size)
    truth = {
        "key": key,
        "caption": text,
        "width": image_size,
        "height": image_size,
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        **_truth(scene, image_size),
    }
    members = {"jpg": jpeg, "txt": text.encode(), "json": json.dumps(truth).encode()}
    if split in _CLASS_OF_SPLIT:
        thing = scene.objects[0]
        members["cls"] = str(CLASSES.index((thing.colour, thing.shape))).encode()
    return members


def _truth(scene: Scene, image_size: int) -> dict[str, Any]:
    """The scene as drawn; boxes are left, top, right, bottom in pixels, rotations degrees clockwise."""
    return {
        "objects": [
            {
                "colour": thing.colour,
                "shape": thing.shape,
                "texture": thing.texture,
                "size": thing.size,
                "rotation": round(thing.rotation, 1),
                "box": [round(value, 2) for value in bounding_box(thing, image_size)],
            }
            for thing in scene.objects
        ],
        "relation": scene.relation,
        "background": {"colour": scene.background.colour, "kind": scene.background.kind},
    }


def _summarize(out: Path, split: str, sizes: dict[_Shard, int]) -> SyntheticSplit:
    shards = sorted((shard for shard in sizes if shard.split == split), key=lambda shard: shard.number)
    first, last = shards[0].path.stem, shards[-1].path.stem
    name = f"{first}.tar" if first == last else f"{{{first}..{last}}}.tar"
    total = sum(sizes[shard] for shard in shards)
    return SyntheticSplit(split, str(out / split / name), len(shards), shards[-1].stop, total)


def _write_descriptions(out: Path, splits: tuple[SyntheticSplit, ...], image_size: int, seed: int) -> None:
    names = [f"{colour} {shape}" for colour, shape in CLASSES]
    (out / "classnames.txt").write_text("\n".join(names) + "\n")
    (out / "templates.txt").write_text("\n".join(PROMPT_TEMPLATES) + "\n")
    classes = [
        {"index": index, "name": name, "colour": pair[0], "shape": pair[1], "held_out": pair in HELD_OUT}
        for index, (name, pair) in enumerate(zip(names, CLASSES, strict=True))
    ]
    (out / "classes.json").write_text(json.dumps(classes, indent=1) + "\n")
    (out / "README.md").write_text(_readme(splits, image_size, seed))


def _readme(splits: tuple[SyntheticSplit, ...], image_size: int, seed: int) -> str:
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
- {len(CLASSES)} classes, one a line in `classnames.txt` (line 1 is class 0); {len(SEEN)} occur in training.
- {len(HELD_OUT)} held-out pairs, only in `test_heldout`: {held_out}. `classes.json` marks them.
- `templates.txt`: zero-shot prompts, `{{}}` standing for the class name.
- "left of" and "right of" are in the captions: train without horizontal flips.
- Size words compare objects of one kind of scene: a large object beside another is smaller than one alone.
"""


_CONTENTS = {
    "train": "1 to 3 objects, captions",
    "val": "like train, for retrieval",
    "test": "one object of a seen pair, with its class",
    "test_heldout": "one object of a held-out pair, with its class",
}
