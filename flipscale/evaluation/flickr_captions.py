"""Flickr30k's captions as they are published: a file of tokens without splits, or a table with splits."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

_TEST = "test"  # the split of a table that is scored
_TOKEN = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<caption>.*)")  # NAME.jpg#0, a tab, and the caption
_COLUMNS = {"raw", "split", "filename"}


def token_captions(text: str) -> dict[str, list[str]]:
    """Return the captions of `results_20130124.token` by the names of the images; all of them count.

    Raises:
        ValueError: If a line is not a caption; the message names the line.
    """
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        token = _TOKEN.fullmatch(line.rstrip("\r"))
        if token is None:
            raise ValueError(f"line {number} has not the form NAME.jpg#NUMBER, a tab, and a caption")
        captions.setdefault(token["name"], []).append(token["caption"])

    return captions


def table_captions(text: str) -> dict[str, list[str]]:
    """Return the captions of the test split of `flickr_annotations_30k.csv` by the names of the images.

    Raises:
        ValueError: If it is not such a table; the message names the line.
    """
    captions: dict[str, list[str]] = {}
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if not set(rows.fieldnames or ()) >= _COLUMNS:
            raise ValueError("it has not the columns raw, split and filename")
        for row in rows:
            if None in row.values():
                raise TypeError("it has fewer columns than the first line")
            if row["split"] == _TEST:
                captions[row["filename"]] = _texts(row["raw"])
    except (csv.Error, RecursionError, TypeError) as error:
        raise ValueError(f"line {rows.line_num} has no captions ({error})") from None

    return captions


def _texts(raw: str) -> list[str]:
    """Return the texts of a JSON list."""
    texts: Any = json.loads(raw)
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in cast("list[Any]", texts)):
        raise TypeError("not a list of texts")
    return cast("list[str]", texts)


READERS: Mapping[str, Callable[[str], dict[str, list[str]]]] = {
    ".token": token_captions,
    ".csv": table_captions,
}
"""The reader of a file by its suffix."""
