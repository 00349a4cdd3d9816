"""Reading back a synthetic data set, for the tests of its files, captions and pictures."""

from __future__ import annotations

import re
from typing import Any

from braceexpand import braceexpand
from webdataset.compat import WebDataset

from flipscale.data.synthetic import vocabulary
from flipscale.data.synthetic.dataset import SyntheticSummary

COLOUR = "|".join(vocabulary.COLOURS)
SHAPE = "|".join(vocabulary.SHAPES)
# Colour, maybe a texture, shape: "red star", "blue striped circles".
NAMED = re.compile(rf"({COLOUR}) (?:(?:striped|dotted|checked) )?({SHAPE})")


def samples_of(summary: SyntheticSummary, split: str) -> list[dict[str, Any]]:
    """Return the samples of a split as stock webdataset reads them, each with its image as an array."""
    urls = list(braceexpand(next(s.pattern for s in summary.splits if s.name == split)))
    dataset: Any = WebDataset(urls, shardshuffle=False)
    return list(dataset.decode("rgb8"))
