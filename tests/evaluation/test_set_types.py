"""The table of set types: a registered type is read by zero-shot classification, probes and retrieval."""

import csv
from pathlib import Path

import pytest
from support.evaluation_samples import swatch, write_tar

from flipscale.config import ZeroShot
from flipscale.evaluation import labelled_sets
from flipscale.evaluation.caption_files import CAPTION_FILE
from flipscale.evaluation.class_folders import CLASS_FOLDERS
from flipscale.evaluation.class_sets import class_set
from flipscale.evaluation.labelled_sets import LABELLED_SET_TYPES
from flipscale.evaluation.retrieval_sets import CAPTIONED_SET_TYPES
from flipscale.evaluation.samples import RawSample
from flipscale.evaluation.set_types import NamedClasses, SetType, type_of
from flipscale.evaluation.shards import CONVERTED_SHARDS, SHARDS
from flipscale.transfer.labelled_images import labelled_images


def open_csv(data: str) -> NamedClasses:
    """A table of image paths and class names."""
    images: dict[str, list[RawSample]] = {}
    with open(data, newline="") as file:
        for path, name in csv.reader(file):
            images.setdefault(name, []).append(RawSample(path, Path(data).parent / path))
    return NamedClasses(images, "class")


CSV = SetType("table of images", lambda data: data.endswith(".csv"), open_csv)


@pytest.fixture
def table(tmp_path, monkeypatch) -> str:
    """A set of two classes and three images in a type that is registered in front of the others."""
    for number, colour in enumerate(["red", "green", "red"]):
        (tmp_path / f"{number}.jpg").write_bytes(swatch(colour))
    (tmp_path / "a.csv").write_text("0.jpg,red\n1.jpg,green\n2.jpg,red\n")
    monkeypatch.setattr(labelled_sets, "LABELLED_SET_TYPES", (CSV, *LABELLED_SET_TYPES))
    return str(tmp_path / "a.csv")


def test_registered_type_is_read_by_zero_shot_and_by_probes(table):
    opened = class_set(ZeroShot(data=table, classnames="folders"))
    assert opened.names == ["red", "green"]
    assert [(s.name, s.label) for s in opened.samples] == [("0.jpg", b"0"), ("2.jpg", b"0"), ("1.jpg", b"1")]

    images = labelled_images(table)
    assert images.names == ("red", "green")
    assert [images.label(sample) for sample in images.samples] == [0, 0, 1]


def test_types_recognise_their_sets(tmp_path):
    (tmp_path / "folders" / "a").mkdir(parents=True)
    (tmp_path / "converted" / "test").mkdir(parents=True)
    (tmp_path / "converted" / "test" / "nshards.txt").write_text("1\n")
    shard = str(write_tar(tmp_path / "a.tar", []))

    for data, kind in (
        (str(tmp_path / "folders"), CLASS_FOLDERS),
        (str(tmp_path / "converted"), CONVERTED_SHARDS),
        (shard, SHARDS),
    ):
        assert type_of(data, LABELLED_SET_TYPES) is kind
    for data, kind in (
        ("captions.json", CAPTION_FILE),
        (str(tmp_path / "converted"), CONVERTED_SHARDS),
        (shard, SHARDS),
    ):
        assert type_of(data, CAPTIONED_SET_TYPES) is kind
