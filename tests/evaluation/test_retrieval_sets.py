"""Captions from JSON files score like the same captions in shards; files without captions are named."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from support.evaluation_samples import encoder_of, swatch, write_tar

from flipscale.config import Evaluation
from flipscale.data.quarantine import BadSample
from flipscale.errors import UserError
from flipscale.evaluation.caption_files import read_captions
from flipscale.evaluation.evaluate import check_sets, evaluate_outcomes
from flipscale.evaluation.samples import image_bytes

CAPTIONS = {
    "red": ["a red square", "red and"],
    "green": ["the green photo"],
    "blue": ["blue", "a blue square"],
}


def documents(extra: dict[str, Any]) -> dict[str, Any]:
    """The three colours as COCO and as Karpathy write them; `extra` goes into a split that does not count."""
    pictures = [{"id": 7 + n, "file_name": f"{colour}.jpg"} for n, colour in enumerate(CAPTIONS)]
    lines = [(7 + n, line) for n, texts in enumerate(CAPTIONS.values()) for line in texts]
    coco = {"images": pictures, "annotations": [{"image_id": n, "caption": line} for n, line in lines[::-1]]}
    karpathy = {
        "images": [
            *({"split": "train", "filename": f"{c}.jpg", "sentences": [{"raw": "x"}]} for c in extra),
            *(
                {"split": "test", "filename": f"{c}.jpg", "sentences": [{"raw": f" {t} \n"} for t in texts]}
                for c, texts in CAPTIONS.items()
            ),
        ]
    }
    return {"captions_val.json": coco, "dataset_colours.json": karpathy}


@pytest.mark.parametrize("folder", ["", "images"])
@pytest.mark.parametrize("file", ["captions_val.json", "dataset_colours.json"])
def test_caption_files_score_like_shards(tmp_path: Path, colour_model, words, folder, file):
    (tmp_path / folder).mkdir(exist_ok=True)
    members = []
    for colour, texts in CAPTIONS.items():
        (tmp_path / folder / f"{colour}.jpg").write_bytes(swatch(colour))
        # COCO's annotations come in an order of their own.
        ordered = texts[::-1] if file == "captions_val.json" else texts
        members += [(f"{colour}.jpg", swatch(colour)), (f"{colour}.txt", "\n".join(ordered).encode())]
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / file).write_text(json.dumps(documents({"yellow": 1})[file]))
    sets = Evaluation(root=str(tmp_path), retrieval={"file": file, "shards": "a.tar"})
    check_sets(sets)
    scored = evaluate_outcomes(encoder_of(colour_model, words), sets)
    assert scored.document["retrieval"]["file"] == scored.document["retrieval"]["shards"]
    assert scored.retrieval["file"].texts == scored.retrieval["shards"].texts
    assert scored.retrieval["file"].samples == ("red.jpg", "green.jpg", "blue.jpg")
    assert scored.document["retrieval"]["file"]["texts"] == 5


def test_missing_image_is_skipped_and_named(tmp_path, colour_model, words):
    (tmp_path / "captions_val.json").write_text(json.dumps(documents({})["captions_val.json"]))
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.jpg").write_bytes(swatch(colour))
    sets = Evaluation(retrieval={"a": str(tmp_path / "captions_val.json")})
    scores = evaluate_outcomes(encoder_of(colour_model, words), sets).document["retrieval"]["a"]
    assert (scores["images"], scores["skipped"]) == (2, 1)
    assert scores["skipped_examples"] == ["green.jpg: the image cannot be read (No such file or directory)"]


def flickr_files() -> dict[str, str]:
    """The three colours as Flickr30k's archive and its table on the hub have them."""
    token = "".join(f"{c}.jpg#{n}\t{t} .\n" for c, texts in CAPTIONS.items() for n, t in enumerate(texts))
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["raw", "sentids", "split", "filename", "img_id"])
    rows.writerow([json.dumps(['a, "b"']), "[0]", "train", "yellow.jpg", 0])
    for colour, texts in CAPTIONS.items():
        rows.writerow([json.dumps([f"{text} ." for text in texts]), "[1, 2]", "test", f"{colour}.jpg", 1])
    return {"results_20130124.token": token, "flickr_annotations_30k.csv": table.getvalue()}


@pytest.mark.parametrize("file", flickr_files())
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_flickr30k_is_read_as_it_unpacks(tmp_path: Path, file: str, ends: str) -> None:
    content = flickr_files()[file].replace("\r\n", "\n").replace("\n", ends)
    (tmp_path / file).write_text(content, newline="")
    (tmp_path / "flickr30k-images").mkdir()
    for colour in CAPTIONS:
        (tmp_path / "flickr30k-images" / f"{colour}.jpg").write_bytes(swatch(colour))
    sets = Evaluation(retrieval={"a": str(tmp_path / file)})
    check_sets(sets)
    samples = list(read_captions(tmp_path / file))
    assert [image_bytes(sample) for sample in samples] == [swatch(colour) for colour in CAPTIONS]
    expected = ["\n".join(f"{text} ." for text in texts) for texts in CAPTIONS.values()]
    assert [(sample.caption or b"").decode() for sample in samples] == expected


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.token", "1.jpg#0 a dog\n", "line 1 has not the form NAME.jpg#NUMBER"),
        ("a.token", "1.jpg#0\ta dog\n<html>\n", "line 2 has not the form"),
        ("a.token", "\n", "has no images"),
        ("a.csv", "image_name| comment\n", "has not the columns raw, split and filename"),
        ("a.csv", "raw,split,filename\n5,test,1.jpg\n", r"line 2 has no captions \(not a list of texts\)"),
        ("a.csv", "raw,split,filename\n[5],test,1.jpg\n", "line 2 has no captions"),
        ("a.csv", "raw,split,filename\n[,test,1.jpg\n", "cannot be read"),
        ("a.csv", 'raw,split,filename\n"[",test,1.jpg\n', "cannot be read"),
        ("a.csv", f"raw,split,filename\n{'[' * 100_000},test,1.jpg\n", "line 2 has no captions"),
        ("a.csv", "raw,split,filename\n[],test\n", "line 2 has no captions"),
        ("a.csv", "raw,split,filename\n[],train,1.jpg\n", "has no images of the split 'test'"),
    ],
)
def test_other_files_of_that_name_are_refused(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        check_sets(Evaluation(retrieval={"a": str(tmp_path / file)}))


UNPACKED = {
    "annotations/captions_val2017.json": "val2017/{}",
    "captions_val2017.json": "val2017/{}",
    "coco/annotations/captions_val2014.json": "coco/images/val2014/{}",
    "dataset_coco.json": "val2014/{}",
    "karpathy/dataset_coco.json": "val2014/{}",
    "dataset_flickr30k.json": "flickr30k-images/{}",
    "karpathy/dataset_flickr30k.json": "flickr30k_images/flickr30k_images/{}",
}


@pytest.mark.parametrize("file", UNPACKED)
def test_sets_are_read_as_they_unpack(tmp_path: Path, file: str) -> None:
    written = documents({})
    document = written["captions_val.json" if "captions" in file else "dataset_colours.json"]
    for picture in document["images"] if file.endswith("dataset_coco.json") else ():
        picture["filepath"] = "val2014"
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(json.dumps(document), encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"none of the images of .* is there; put their folder next to it"):
        check_sets(Evaluation(retrieval={"a": str(tmp_path / file)}))

    for colour in CAPTIONS:
        place = tmp_path / UNPACKED[file].format(f"{colour}.jpg")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(swatch(colour))
    check_sets(Evaluation(retrieval={"a": str(tmp_path / file)}))
    samples = list(read_captions(tmp_path / file))
    assert [image_bytes(sample) for sample in samples] == [swatch(colour) for colour in CAPTIONS]


def test_name_with_a_nul_is_a_missing_image(tmp_path: Path) -> None:
    document = documents({})["captions_val.json"]
    document["images"][1]["file_name"] = "a\0b.jpg"
    (tmp_path / "captions_val.json").write_text(json.dumps(document))
    (tmp_path / "red.jpg").write_bytes(swatch("red"))
    sample = list(read_captions(tmp_path / "captions_val.json"))[1]
    with pytest.raises(BadSample, match="its name has a NUL"):
        image_bytes(sample)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"images": []}', "has no images of the split 'test'"),
        ('{"images": [{"filename": "a.jpg", "split": "val", "sentences": []}]}', "no images of the split"),
        ("{", "cannot be read"),
        ("[]", "neither COCO's nor Karpathy's"),
        ('{"images": [{"filename": "a.jpg"}]}', "neither COCO's nor Karpathy's"),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}', "neither COCO's nor Karpathy's"),
    ],
)
def test_file_without_captions_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "captions.json").write_text(content)
    with pytest.raises(UserError, match=message):
        check_sets(Evaluation(retrieval={"a": str(tmp_path / "captions.json")}))
