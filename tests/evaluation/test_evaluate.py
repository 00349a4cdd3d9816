"""Whole evaluations: from real shards and folders to one JSON document."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.evaluation_samples import encoder_of, swatch, write_tar

from flipscale.config import Evaluation, ZeroShot
from flipscale.errors import UserError
from flipscale.evaluation.evaluate import evaluate
from flipscale.models.flip import build_model
from flipscale.models.presets import preset

# (colour seen, label): two reds right, a green called blue, a blue right
LABELLED = [("red", 0), ("red", 0), ("green", 2), ("blue", 2)]


@pytest.fixture
def sets(tmp_path) -> Path:
    """A directory with zero.tar (which has a broken image), pairs.tar, folder, names.txt, templates.txt."""
    members = [("x.jpg", b"broken"), ("x.cls", b"0")]
    for n, (colour, label) in enumerate(LABELLED):
        members += [(f"{n}.jpg", swatch(colour)), (f"{n}.cls", b"%d" % label)]
        (tmp_path / "folder" / "cba"[label]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / "cba"[label] / f"{n}.jpg").write_bytes(swatch(colour))
    write_tar(tmp_path / "zero.tar", members)
    members = []
    for n, (colour, caption) in enumerate(
        [
            ("red", "a red square"),
            ("green", "the green\na green photo"),
            ("blue", "green"),
            ("red", "red and"),
        ]
    ):
        members += [(f"{n}.png", swatch(colour, "PNG")), (f"{n}.txt", caption.encode())]
    write_tar(tmp_path / "pairs.tar", members)
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "templates.txt").write_text("a photo of the {}.\na {} square\n")
    return tmp_path


def zero_shot(sets: Path, data: str = "zero.tar", names: str = "names.txt") -> ZeroShot:
    return ZeroShot(
        data=str(sets / data),
        classnames=names if names == "folders" else str(sets / names),
        templates=str(sets / "templates.txt"),
    )


def drawn(*right: list[int]) -> list[float]:
    """The interval of a share, from 1,000 sets of images drawn one by one, each with all of its queries."""
    sets = np.random.default_rng(0).integers(0, len(right), (1000, len(right)))
    shares = [np.mean([hit for image in images for hit in right[image]]) for images in sets]
    return [float(edge) for edge in np.quantile(shares, [0.025, 0.975])]


def test_the_document_of_a_known_model(sets, colour_model, words):
    config = Evaluation(zero_shot={"swatches": zero_shot(sets)}, retrieval={"pairs": str(sets / "pairs.tar")})
    seen = []
    document = evaluate(
        encoder_of(colour_model, words),
        config,
        samples_seen=4096,
        batch_size=3,
        progress=lambda *done: seen.append(done),
    )
    assert json.loads(json.dumps(document)) == document
    assert document == {
        "format": 1,
        "samples_seen": 4096,
        "views": None,
        "skipped": 1,
        "zero_shot": {
            "swatches": {
                "metric": "top1",
                "value": 3 / 4,
                "interval": drawn([1], [1], [0], [1]),
                "top1": 3 / 4,
                "top5": 1.0,
                "mean_per_class": 3 / 4,
                "intervals": {
                    "top1": drawn([1], [1], [0], [1]),
                    "top5": [1.0, 1.0],
                    "mean_per_class": [0.5, 1.0],
                },
                "per_class": [1.0, None, 0.5],
                "samples": 4,
                "classes": 3,
                "templates": 2,
                "skipped": 1,
                "skipped_examples": ["zero.tar/x: not an image"],
            }
        },
        # Image 0 ties with image 3 for "a red square" and "red and", and these tie for both: rank 2 each.
        # The greens tie with "green", which is the blue image's caption: rank 2. That one comes last: rank 5.
        "retrieval": {
            "pairs": {
                "image_to_text": {
                    "R@1": 0.0,
                    "R@5": 1.0,
                    "R@10": 1.0,
                    "mean_rank": (2 + 2 + 5 + 2) / 4,
                    "median_rank": 2.0,
                    "intervals": {"R@1": [0.0, 0.0], "R@5": [1.0, 1.0], "R@10": [1.0, 1.0]},
                },
                "text_to_image": {
                    "R@1": 2 / 5,
                    "R@5": 1.0,
                    "R@10": 1.0,
                    "mean_rank": (2 + 1 + 1 + 4 + 2) / 5,
                    "median_rank": 2.0,
                    "intervals": {"R@1": drawn([0], [1, 1], [0], [0]), "R@5": [1.0, 1.0], "R@10": [1.0, 1.0]},
                },
                "images": 4,
                "texts": 5,
                "distinct_texts": 5,
                "skipped": 0,
                "skipped_examples": [],
            }
        },
    }
    assert seen == [("swatches", 2), ("swatches", 4), ("pairs", 3), ("pairs", 4)]


def test_folder_takes_names_from_a_file_or_from_its_folders(sets, words, colour_model):
    # Sorted, the folders a, b, c hold the images of blue, of nothing usable, and of red.
    (sets / "folder" / "b").mkdir()
    (sets / "folder" / "b" / "notes.txt").write_text("no image")
    (sets / "sorted.txt").write_text("blue\ngreen\nred\n")
    config = Evaluation(zero_shot={"folder": zero_shot(sets, "folder", "sorted.txt")})
    result = evaluate(encoder_of(colour_model, words), config)["zero_shot"]["folder"]
    assert result["per_class"] == [0.5, None, 1.0]
    for old, new in (("a", "blue"), ("b", "the_green"), ("c", "red")):
        (sets / "folder" / old).rename(sets / "folder" / new)
    config = Evaluation(zero_shot={"folder": zero_shot(sets, "folder", "folders")})
    result = evaluate(encoder_of(colour_model, words), config)["zero_shot"]["folder"]
    assert result["per_class"] == [0.5, 1.0, None]


def test_batching_does_not_change_the_scores_of_a_flip_model(sets, words):
    spec = preset("vit_micro_p8", vocab_size=words.vocab_size, context_length=words.context_length)
    model = build_model(spec)
    config = Evaluation(zero_shot={"zero": zero_shot(sets)}, retrieval={"pairs": str(sets / "pairs.tar")})
    documents = [
        evaluate(encoder_of(model, words, spec.vision.image_size), config, batch_size=size, workers=workers)
        for size, workers in ((64, 1), (1, 3))
    ]
    assert documents[0] == documents[1]
    assert documents[0]["zero_shot"]["zero"]["samples"] == 4


def test_no_sets_give_an_empty_document(words, colour_model):
    assert evaluate(encoder_of(colour_model, words), Evaluation()) == {
        "format": 1,
        "samples_seen": None,
        "views": None,
        "skipped": 0,
        "zero_shot": {},
        "retrieval": {},
    }


def broken(sets: Path, case: str) -> Evaluation:
    """An evaluation with one thing wrong."""
    if case == "two names too few":
        (sets / "names.txt").write_text("red\n")
        return Evaluation(zero_shot={"a": zero_shot(sets)})
    if case == "folder with other names":
        return Evaluation(zero_shot={"a": zero_shot(sets, "folder")})
    if case == "folders of shards":
        return Evaluation(zero_shot={"a": zero_shot(sets, names="folders")})
    if case == "no usable image":
        write_tar(sets / "bad.tar", [("1.jpg", b"broken"), ("1.txt", b"x")])
        return Evaluation(retrieval={"a": str(sets / "bad.tar")})
    if case == "no sample":
        write_tar(sets / "bad.tar", [])
        return Evaluation(retrieval={"a": str(sets / "bad.tar")})
    if case == "missing shard":
        return Evaluation(zero_shot={"a": zero_shot(sets, "none.tar")})
    if case == "missing names":
        return Evaluation(zero_shot={"a": zero_shot(sets, names="none.txt")})
    assert case == "bad template"
    (sets / "templates.txt").write_text("a photo\n")
    return Evaluation(zero_shot={"a": zero_shot(sets)})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("two names too few", r"is 2, but there are 1 class names"),
        ("folder with other names", "has 3 class names, but .* has 2 class folders"),
        ("folders of shards", "needs a folder of class folders"),
        ("no usable image", r"holds no usable sample \(1 skipped, the first being bad.tar/1: not an image"),
        ("no sample", r"holds no usable sample \(0 skipped\)"),
        ("missing shard", "is not a file"),
        ("missing names", "there is no file"),
        ("bad template", "needs {} once"),
    ],
)
def test_unusable_input_is_reported(sets, words, colour_model, case, message):
    with pytest.raises(UserError, match=message):
        evaluate(encoder_of(colour_model, words), broken(sets, case))


def test_diverged_model_is_refused(sets, words, colour_model):
    with torch.no_grad():
        colour_model.table.fill_(torch.nan)
    with pytest.raises(UserError, match="features are NaN or infinite"):
        evaluate(encoder_of(colour_model, words), Evaluation(zero_shot={"a": zero_shot(sets)}))
