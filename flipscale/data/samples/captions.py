"""A sample's caption: drawn from one of several fields, by the position at which the sample is read."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from flipscale.config import CaptionSource, parse_caption_source
from flipscale.data.order.lanes import hash64
from flipscale.data.quarantine import BadSample
from flipscale.data.shards.members import SampleMembers
from flipscale.data.shards.source import ShardSource
from flipscale.data.text.caption import decode_caption

# Words of the hash that draw the field and the caption of a list; lanes.py and mixture.py have 1 to 4.
_FIELD = 5
_OF_LIST = 6

_DEEPEST = 200
"""The levels of a JSON member that is read. Python's own limit depends on its version and on the caller."""
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class Caption(NamedTuple):
    """A caption, and what identifies it."""

    text: str
    checksum: int
    """CRC-32 of the member `txt`, or of the text if it comes from another field."""


class CaptionFields:
    """The fields of a sample that hold captions.

    If the drawn field is missing, blank or not UTF-8, the next one in the order of `fields` is used, and the
    first after the last. So are the captions of a list. Whether a sample is usable therefore depends neither
    on the draw nor on the position.

    Args:
        fields: Name and weight of each field, as in `data.captions`.
        seed: The job's seed.

    Raises:
        ValueError: If a name cannot be that of a field.
    """

    def __init__(self, fields: Mapping[str, float], seed: int = 0) -> None:
        self._sources = [parse_caption_source(name) for name in fields]
        self._bounds = np.cumsum(list(fields.values())) / sum(fields.values())
        self._seed = seed

    @property
    def indexed(self) -> bool:
        """Whether the index knows all members that are read: it knows `txt`."""
        return self._sources == [CaptionSource("txt")]

    def draw(self, members: Mapping[str, bytes], position: int) -> str:
        """Return the caption of a sample at a position.

        Args:
            members: The sample's members by extension.
            position: The position of the run.

        Raises:
            BadSample: If no field holds a caption.
        """
        if self.indexed:
            return decode_caption(members.get("txt", b""))

        share = self._share(_FIELD, position)
        first = min(int(np.searchsorted(self._bounds, share, side="right")), len(self._sources) - 1)

        reasons: dict[CaptionSource, str] = {}
        for source in (*self._sources[first:], *self._sources[:first]):
            try:
                texts = _texts(members, source)
                start = int(self._share(_OF_LIST, position) * len(texts)) if len(texts) > 1 else 0
                return _first_caption((*texts[start:], *texts[:start]))
            except BadSample as error:
                reasons[source] = str(error)

        raise BadSample("; ".join(f"{source.name}: {reasons[source]}" for source in self._sources))

    def all(self, members: Mapping[str, bytes]) -> dict[str, list[str]]:
        """Return all captions of a sample, by field; a field without any has an empty list."""
        return {source.name: _captions(members, source) for source in self._sources}

    def _share(self, word: int, position: int) -> float:
        return int(hash64(self._seed, word, position)) / 2**64


class Captions:
    """The reader of captions from shards.

    Args:
        fields: The fields that hold captions.
        source: The shards.
    """

    def __init__(self, fields: CaptionFields, source: ShardSource) -> None:
        self._fields = fields
        self._source = source

    def caption(self, shard: int, ordinal: int, position: int) -> Caption:
        """Return the caption of a sample at a position.

        Raises:
            BadSample: If no field holds a caption.
        """
        if self._fields.indexed:
            content, checksum = self._source.checked_content(shard, ordinal, "text")
            return Caption(decode_caption(content), checksum)

        text = self._fields.draw(self._source.members(shard, ordinal), position)
        return Caption(text, zlib.crc32(text.encode()))

    def all(self, shard: int, ordinal: int) -> list[str]:
        """Return all captions of a sample."""
        captions = self._fields.all(self._members(shard, ordinal))
        return [text for texts in captions.values() for text in texts]

    def _members(self, shard: int, ordinal: int) -> SampleMembers:
        if not self._fields.indexed:
            return self._source.members(shard, ordinal)

        return SampleMembers({"txt": partial(self._source.content, shard, ordinal, "text")})


def _captions(members: Mapping[str, bytes], source: CaptionSource) -> list[str]:
    captions: list[str] = []
    try:
        texts = _texts(members, source)
    except BadSample:
        return captions

    for text in texts:
        try:
            captions.append(decode_caption(text))
        except BadSample:
            continue
    return captions


def _first_caption(texts: Sequence[bytes]) -> str:
    """Return the first of the texts that is a caption."""
    reason = BadSample("the caption is missing or empty")
    for text in texts:
        try:
            return decode_caption(text)
        except BadSample as error:
            reason = error
    raise reason


def _texts(members: Mapping[str, bytes], source: CaptionSource) -> list[bytes]:
    """Return the texts of a field, usable or not: one, or those of a list."""
    content = members.get(source.member)
    if content is None or source.field is None:
        return [content or b""]

    if _is_deep(content):
        raise BadSample(f"the member {source.member} is nested too deeply")
    try:
        # Python limits the digits of int, by version and environment; nobody reads the numbers.
        document: Any = json.loads(content, parse_int=float)
    except ValueError:
        raise BadSample(f"the member {source.member} is not JSON") from None

    fields = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    value: Any = fields.get(source.field)
    values = cast("list[Any]", value) if isinstance(value, list) else [value]
    return [text.encode("utf-8", errors="surrogatepass") for text in values if isinstance(text, str)]


def _is_deep(content: bytes) -> bool:
    """Return whether a JSON document has more than _DEEPEST levels."""
    if content.count(b"[") + content.count(b"{") <= _DEEPEST:
        return False

    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", content)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > _DEEPEST:
            return True
    return False
