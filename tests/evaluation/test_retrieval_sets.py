"""Captions from JSON files score like the same captions in shards; files without captions are named."""

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
