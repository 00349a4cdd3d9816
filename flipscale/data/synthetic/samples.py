"""One rendered sample: its scene, caption and JPEG, and the members that it has in a tar."""

from __future__ import annotations

import hashlib
import io
import json
from random import Random
from typing import Any

from flipscale.data.synthetic.captions import caption
from flipscale.data.synthetic.rendering import bounding_box, render
from flipscale.data.synthetic.scenes import Scene, draw_scene, draw_single
from flipscale.data.synthetic.vocabulary import CLASSES, HELD_OUT, SEEN

_CLASSES_OF_SPLIT = {"test": SEEN, "test_heldout": HELD_OUT}


def make_sample(seed: int, split: str, number: int, image_size: int) -> tuple[Scene, str, bytes]:
    """Make one sample, as a pure function of the arguments.

    Args:
        seed: Seed of the data set.
        split: Name of the split.
        number: Number of the sample in the split.
        image_size: Height and width, in pixels.

    Returns:
        Its scene, caption and JPEG.
    """
    # Seeding by text (SHA-512) and random() are stable between versions of Python.
    rng = Random(f"{seed}/{split}/{number}")
    classes = _CLASSES_OF_SPLIT.get(split)
    scene = draw_scene(rng) if classes is None else draw_single(rng, classes[number % len(classes)])
    text = caption(rng, scene)

    jpeg = io.BytesIO()
    render(scene, image_size).save(jpeg, "JPEG", quality=rng.randint(82, 95))
    return scene, text, jpeg.getvalue()


def sample_members(seed: int, split: str, number: int, image_size: int, key: str) -> dict[str, bytes]:
    """Return the contents of a sample's members by their extension (arguments as of `make_sample`)."""
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
    if split in _CLASSES_OF_SPLIT:
        thing = scene.objects[0]
        members["cls"] = str(CLASSES.index((thing.colour, thing.shape))).encode()

    return members


def _truth(scene: Scene, image_size: int) -> dict[str, Any]:
    """Return the scene as drawn; boxes are (left, top, right, bottom) in pixels, rotations in degrees."""
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
