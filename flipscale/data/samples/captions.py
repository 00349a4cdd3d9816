"""A sample's caption: drawn from one of several fields, by the position at which the sample is read."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from flipscale.data.order.lanes import hash64
from flipscale.data.quarantine import BadSample
from flipscale.data.samples.decode import decode_caption
from flipscale.data.shards.source import ShardSource

_CAPTION = 5  # word of the hash that draws the field; those of lanes.py and mixture.py are 1 to 4
_JSON = "json."  # prefix of a field that is an entry of the json member


class Captions:
    """The reader of captions.

    If the drawn field is missing, blank or not UTF-8, the next one in the order of `fields` is used, and the
    first after the last. Whether a sample is usable therefore depends neither on the draw nor on the
    position.

    Args:
        fields: Name and weight of each field, as in `data.captions`.
        source: The shards.
        seed: The job's seed.
    """

    def __init__(self, fields: Mapping[str, float], source: ShardSource, seed: int) -> None:
        self._names = list(fields)
        self._bounds = np.cumsum(list(fields.values())) / sum(fields.values())
        self._source = source
        self._seed = seed

    def caption(self, shard: int, ordinal: int, position: int) -> str:
        """Return the caption of a sample at a position.

        Raises:
            BadSample: If no field holds a caption.
        """
        if self._names == ["txt"]:
            row = self._source.member(shard, ordinal)
            return decode_caption(self._source.bytes(shard, int(row["text"]), int(row["text_bytes"])))

        members = self._source.members(shard, ordinal)
        first = self._drawn(position)
        reasons: dict[str, str] = {}
        for name in (*self._names[first:], *self._names[:first]):
            try:
                return decode_caption(_content(members, name))
            except BadSample as error:
                reasons[name] = str(error)

        raise BadSample("; ".join(f"{name}: {reasons[name]}" for name in self._names))

    def _drawn(self, position: int) -> int:
        share = int(hash64(self._seed, _CAPTION, position)) / 2**64
        return min(int(np.searchsorted(self._bounds, share, side="right")), len(self._names) - 1)


def _content(members: Mapping[str, bytes], name: str) -> bytes:
    if not name.startswith(_JSON):
        return members.get(name, b"")

    try:
        field = json.loads(members.get("json", b"{}"))[name.removeprefix(_JSON)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return b""

    return field.encode("utf-8", errors="surrogatepass") if isinstance(field, str) else b""
