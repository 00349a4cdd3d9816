"""The names of caption sources: an extension, or a field of a JSON member."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from flipscale.config import CaptionSource, Data, parse_caption_source

DATA = {"train": "0.tar", "tokenizer": {"vocab": "vocab.txt"}}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("txt", CaptionSource("txt")),
        ("Alt.TXT", CaptionSource("alt.txt")),
        ("json.Caption", CaptionSource("json", "Caption")),
        ("syn.JSON.a.b", CaptionSource("syn.json", "a.b")),
        ("json.json", CaptionSource("json", "json")),
        ("json.a/b", CaptionSource("json", "a/b")),
    ],
)
def test_sources(name, source):
    assert parse_caption_source(name) == source
    assert parse_caption_source(source.name) == source
    assert Data.model_validate({**DATA, "captions": {name: 2.0}}).captions == {source.name: 2.0}


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (
            {"json": 1},
            "'json' is a JSON document and not a caption; name one of its fields, as in json.caption",
        ),
        ({"txt": 1, "syn.JSON": 1}, "as in syn.JSON.caption"),
        ({".txt": 1}, "'.txt' has an empty part; write an extension without its first dot"),
        ({"json.": 1}, "'json.' has an empty part"),
        ({"": 1}, "'' has an empty part"),
        ({"txt": 1e308, "alt.txt": 1e308}, "the weights of captions are too large to be added"),
        ({"alt/txt": 1}, "'alt/txt' has a slash, which no extension has"),
        ({"txt": 1, "TXT": 1}, "captions names one source twice (txt, TXT)"),
    ],
)
def test_names_that_find_nothing_are_refused(captions, message):
    with pytest.raises(ValidationError) as caught:
        Data.model_validate({**DATA, "captions": captions})
    assert message in str(caught.value)
