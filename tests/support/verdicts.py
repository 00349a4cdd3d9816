"""Verdicts on mutated images, from every library and at every scale: `python -m support.verdicts`.

A process of its own finds what a test cannot survive, such as a crash of a decoder; the file of the last
input then names the culprit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from support.mutations import image_seeds, mutated

from flipscale.data.quarantine import BadSample
from flipscale.data.samples import decode
from flipscale.data.samples.augment import View
from flipscale.data.samples.decode import open_image, render, whole

SIZES = (8, 30, 64)
"""Sides of views, in pixels: of the seeds' 67 x 50 pixels, decoded at a quarter or an eighth, and whole."""
_LIMIT = 10**6  # pixels


def mutation(number: int, seed: int) -> bytes:
    """Return input `number` of a mutation run."""
    random = np.random.default_rng([seed, number])
    seeds = list(image_seeds().values())
    return mutated(seeds[number % len(seeds)], seeds[random.integers(len(seeds))], random)


def verdicts(data: bytes) -> set[str]:
    """Return what every library says of a file at every scale, and what evaluation says; one is right."""
    found = {verdict(data, size) for size in (0, *SIZES)}
    for missing in ("simplejpeg", "cykooz_resizer"):
        with without(missing):
            found |= {verdict(data, size) for size in (SIZES if data.startswith(b"\xff\xd8") else SIZES[:1])}
    return found


def verdict(data: bytes, size: int) -> str:
    """Return why an image cannot be shown at a size, or "good"; 0 decodes it whole, as evaluation does."""
    try:
        image = open_image(data, _LIMIT)
        if size:
            render(image, View((0, 0, *image.size), False), size, "bilinear")
        else:
            whole(image)
    except BadSample as bad:
        return str(bad)
    return "good"


@contextmanager
def without(library: str) -> Generator[None]:
    """Hide a library from the decoder."""
    hidden = getattr(decode, library)
    setattr(decode, library, None)
    try:
        yield
    finally:
        setattr(decode, library, hidden)


def main() -> None:
    """Write one line of verdicts per input of a range; in reverse order, whole images only."""
    output, seed, start, stop, order = sys.argv[1:]
    numbers = range(int(start), int(stop))
    with open(output, "w", encoding="utf-8") as file, open(f"{output}.input", "wb", buffering=0) as last:
        for number in numbers if order == "all" else reversed(numbers):
            data = mutation(number, int(seed))
            last.seek(0)
            last.truncate()
            last.write(data)
            found = verdicts(data) if order == "all" else {verdict(data, 0)}
            file.write(json.dumps([number, sorted(found)]) + "\n")
    Path(f"{output}.input").unlink()


if __name__ == "__main__":
    main()
