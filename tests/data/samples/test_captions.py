"""Captions drawn from several fields: by position, in their proportion, and no sample is lost for one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import Member, encoded, picture, write_tar

from flipscale.config import Augmentation
from flipscale.data.order.mixture import Mixture
from flipscale.data.quarantine import BadSample
from flipscale.data.samples.captions import CaptionFields, Captions
from flipscale.data.samples.reader import Chunk, ReaderSettings, SampleReader
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource

IMAGE = encoded(picture(0))


def source(path: Path, members: list[Member], layout: int | None = None) -> ShardSource:
    write_tar(path, members) if layout is None else write_tar(path, members, layout)
    return ShardSource(build_index(str(path), path.parent / "index"))


def reader(shards: ShardSource, fields: dict[str, float], seed: int = 0) -> Captions:
    return Captions(CaptionFields(fields, seed), shards)


def several(key: str, *, before: bool = False) -> list[Member]:
    """A sample with every kind of caption, its json behind or before the others."""
    details = json.dumps({"alt": f"json {key}", "size": 3, "none": None}).encode()
    members = [(f"{key}.jpg", IMAGE), (f"{key}.txt", f"txt {key}".encode())]
    members.append((f"{key}.alt.txt", f"alt {key}".encode()))
    return [(f"{key}.json", details), *members] if before else [*members, (f"{key}.json", details)]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("layout", [0, 1, 2])
def test_members_that_the_index_does_not_know(tmp_path, before, layout):
    members = [("x.json", b"{}"), *several("d/0", before=before), ("README", b"")]
    members += [*several("1" * 120 if layout else "1", before=before), *several("2", before=before)]
    found = source(tmp_path / "0.tar", members, layout)
    for ordinal, key in enumerate(["d/0", "1" * 120 if layout else "1", "2"]):
        own = found.members(0, ordinal)
        assert set(own) == {"jpg", "txt", "alt.txt", "json"}
        assert (own["jpg"], own["txt"], own["alt.txt"]) == (
            IMAGE,
            f"txt {key}".encode(),
            f"alt {key}".encode(),
        )
        assert json.loads(own["json"])["alt"] == f"json {key}"


def test_every_field_comes_in_its_proportion(tmp_path):
    found = source(tmp_path / "0.tar", several("0"))
    captions = reader(found, {"txt": 1.0, "alt.txt": 2.0, "json.alt": 5.0}, seed=3)
    drawn = Counter(captions.caption(0, 0, position).text.split()[0] for position in range(800))
    for kind, share in (("txt", 1 / 8), ("alt", 2 / 8), ("json", 5 / 8)):
        assert abs(drawn[kind] - 800 * share) < 5 * (800 * share * (1 - share)) ** 0.5
    fields = {"txt": 1.0, "alt.txt": 2.0, "json.alt": 5.0}
    same, other = reader(found, fields, seed=3), reader(found, fields, seed=4)
    assert all(same.caption(0, 0, p).text == captions.caption(0, 0, p).text for p in range(50))
    assert any(other.caption(0, 0, p).text != captions.caption(0, 0, p).text for p in range(50))


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(["txt", "alt.txt", "json.alt"])), st.integers(0, 10**12))
def test_a_missing_field_gives_way_to_the_next(tmp_path_factory, missing, position):
    members = [member for member in several("0") if member[0].partition(".")[2] not in missing]
    if "json.alt" in missing:
        members = [(name, b'{"alt": 7}' if name == "0.json" else data) for name, data in members]
    found = source(tmp_path_factory.mktemp("captions") / "0.tar", members)
    names = ["txt", "alt.txt", "json.alt"]
    fields = dict.fromkeys(names, 1.0)
    captions = reader(found, fields)
    if len(missing) == 3:
        with pytest.raises(BadSample, match=r"txt: the caption is missing or empty; alt.txt: .*; json.alt: "):
            captions.caption(0, 0, position)
        return
    whole = source(tmp_path_factory.mktemp("whole") / "0.tar", several("0"))
    kinds = ["txt", "alt", "json"]
    drawn = kinds.index(reader(whole, fields).caption(0, 0, position).text.split()[0])
    order = [*range(drawn, 3), *range(drawn)]
    expected = next(kinds[n] for n in order if names[n] not in missing)
    assert captions.caption(0, 0, position).text.split()[0] == expected


def test_fields_that_hold_no_caption(tmp_path):
    deep = b'{"a": ' * 100_000
    documents = [
        deep,
        b"[1]",
        b"not json",
        b'{"a": " "}',
        b'{"a": "\\ud800"}',
        b"\xff",
        b'{"b": "x"}',
        b"1" * 9999,
    ]
    documents += [b'{"a": []}', b'{"a": [7, null, " ", ["x"], {"x": "x"}]}', b'{"a": {"x": "x"}}']
    for text in documents:
        found = source(tmp_path / "0.tar", [("0.jpg", IMAGE), ("0.json", text)])
        with pytest.raises(BadSample):
            reader(found, {"json.a": 1.0}).caption(0, 0, 0)


@pytest.mark.parametrize(
    ("more", "usable"),
    [
        ("1" * 9999, True),
        ("[" * 199 + "]" * 199, True),
        ("[" * 900 + "]" * 900, False),
        (json.dumps("[" * 900), True),
        (json.dumps('"\\' + "{" * 900), True),
        ("[" + "[]," * 900 + "1]", True),
    ],
    ids=["digits", "levels", "too many levels", "brackets in a text", "quotes in a text", "siblings"],
)
def test_the_verdict_on_a_document_depends_on_its_bytes_only(tmp_path, more, usable):
    """Python's own limits depend on its version, the environment and the depth of the caller."""
    document = f'{{"a": "x", "more": {more}}}'.encode()
    found = source(tmp_path / "0.tar", [("0.jpg", IMAGE), ("0.json", document)])

    def deeper(levels: int) -> bool:
        if levels:
            return deeper(levels - 1)
        try:
            return reader(found, {"json.a": 1.0}).caption(0, 0, 0).text == "x"
        except BadSample:
            return False

    assert [deeper(levels) for levels in (0, 300)] == [usable, usable]


def test_one_caption_of_a_list_is_drawn_by_position(tmp_path):
    names = [f"caption {n}" for n in range(5)]
    details = json.dumps({"Texts": names, "meta.text": "dotted"}).encode()
    found = source(tmp_path / "0.tar", [("0.jpg", IMAGE), ("0.syn.json", details)])
    captions = reader(found, {"SYN.json.Texts": 1.0})
    drawn = Counter(captions.caption(0, 0, position).text for position in range(1000))
    assert sorted(drawn) == names
    assert all(abs(count - 200) < 5 * 160**0.5 for count in drawn.values())
    again = reader(found, {"syn.json.Texts": 1.0})
    assert all(again.caption(0, 0, p).text == captions.caption(0, 0, p).text for p in range(50))
    assert captions.all(0, 0) == names
    assert reader(found, {"syn.json.meta.text": 1.0}).caption(0, 0, 7).text == "dotted"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["", " ", "\u200b", "x", "y"]) | st.none(), min_size=1), st.integers(0, 10**12)
)
def test_a_list_is_usable_wherever_it_is_drawn(texts, position):
    """The verdict on a sample may not depend on the position at which it is read."""
    members = {"json": json.dumps({"a": texts}).encode()}
    fields = CaptionFields({"json.a": 1.0})
    usable = [text for text in texts if text in ("x", "y")]
    if usable:
        assert fields.draw(members, position) in usable
    else:
        with pytest.raises(BadSample):
            fields.draw(members, position)
    assert fields.all(members) == {"json.a": usable}


def test_the_reader_draws_captions_and_nothing_else_changes(tmp_path, tokenizer):
    members = [m for n in range(8) for m in [*several(str(n)), (f"{n}.blue.txt", b"a blue cat")]]
    index = source(tmp_path / "0.tar", members).index
    order = Mixture(index.counts, 2, 4, 0)

    def read(captions: dict[str, float]) -> Chunk:
        settings = ReaderSettings(8, Augmentation(), 10**8, captions)
        return SampleReader(ShardSource(index), order, tokenizer, settings).read(np.arange(32))

    one, both = read({"txt": 1.0}), read({"txt": 1.0, "blue.txt": 1.0})
    assert one.digest == both.digest
    assert one.images.equal(both.images)
    blue = tokenizer(["a blue cat"])[0]
    assert 6 <= sum(row.equal(blue) for row in both.tokens) <= 26
