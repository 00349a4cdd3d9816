"""Classification sets of a job: shards, CLIP_benchmark's layout, subsets, labels that fit their metric."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from support.evaluation_samples import COLOURS, encoder_of, make_class_folders, npy, swatch, write_tar

from flipscale.config import Evaluation, ZeroShot
from flipscale.errors import UserError
from flipscale.evaluation.class_sets import check_class_set, class_set, rooted, set_templates
from flipscale.evaluation.evaluate import check_sets, evaluate_outcomes
from flipscale.evaluation.outcomes import Classified, Labelled
from flipscale.evaluation.shards import shards_of


def benchmark_directory(root: Path) -> Path:
    """A directory of CLIP_benchmark's converter: six images of three colours, one of them mislabelled."""
    (root / "test").mkdir(parents=True)
    shown = ["red", "green", "blue", "red", "green", "red"]
    for shard in range(2):
        members = []
        for n, colour in enumerate(shown[3 * shard : 3 * shard + 3]):
            label = "blue" if (shard, n) == (1, 2) else colour
            members += [
                (f"s{n}.png", swatch(colour, "PNG")),
                (f"s{n}.cls", str("rgb".index(label[0])).encode()),
            ]
        write_tar(root / "test" / f"{shard}.tar", members)
    (root / "test" / "nshards.txt").write_text("2\n")
    (root / "classnames.txt").write_text("red\ngreen\nblue\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of the {c}.\n")
    return root


def test_clip_benchmarks_directory_provides_names_templates_and_shards(tmp_path, colour_model, words):
    data = benchmark_directory(tmp_path / "wds" / "vtab-colours")
    config = ZeroShot(data="vtab-colours", classnames="own", templates="own")
    sets = Evaluation(root=str(tmp_path / "wds"), zero_shot={"colours": config}, retrieval={})
    check_sets(sets)
    scored = evaluate_outcomes(encoder_of(colour_model, words), sets)
    scores = scored.document["zero_shot"]["colours"]
    assert (scores["samples"], scores["classes"], scores["templates"]) == (6, 3, 1)
    assert scores["per_class"] == [1.0, 1.0, 0.5]
    outcome = scored.zero_shot["colours"]
    assert outcome.samples == ("0.tar/s0", "0.tar/s1", "0.tar/s2", "1.tar/s0", "1.tar/s1", "1.tar/s2")
    assert set_templates(rooted(sets).zero_shot["colours"]) == ["a photo of the {}."]
    assert shards_of(str(data)) == f"{data}/test/0.tar::{data}/test/1.tar"
    (data / "test" / "1.tar").unlink()
    with pytest.raises(UserError, match=r"1\.tar is not a file"):
        check_sets(sets)
    (data / "test" / "nshards.txt").write_text("many")
    with pytest.raises(UserError, match="which gives the number of its shards"):
        check_class_set(rooted(sets).zero_shot["colours"])


def test_subset_of_shards_excludes_other_classes(tmp_path, colour_model, words):
    data = benchmark_directory(tmp_path / "colours")
    (tmp_path / "subset.txt").write_text("0\n2\n")
    config = ZeroShot(
        data=str(data),
        classnames="own",
        templates="own",
        subset=str(tmp_path / "subset.txt"),
        metric="roc_auc",
    )
    scored = evaluate_outcomes(encoder_of(colour_model, words), Evaluation(zero_shot={"two": config}))
    scores, outcome = scored.document["zero_shot"]["two"], scored.zero_shot["two"]
    assert isinstance(outcome, Classified)
    assert outcome.labels.tolist() == [0, 1, 0, 1]  # red, blue, red, and the red one called blue
    assert (scores["classes"], scores["skipped"], scores["per_class"]) == (2, 0, [1.0, 0.5])
    # Blue shows 1 in the margin, red -1: of the 4 pairs 2 are right and 2 are ties.
    assert outcome.margins is not None
    assert scores["value"] == 0.75 == roc_auc_score(outcome.labels, outcome.margins)


@pytest.mark.parametrize("kind", ["npy", "cls"])
def test_several_labels_per_image_are_scored(tmp_path, colour_model, words, kind):
    labels = [("red", [0]), ("green", [1, 2]), ("blue", []), ("red", [1])]
    members = []
    for n, (colour, shown) in enumerate(labels):
        vector = npy([float(c in shown) for c in range(3)])
        content = vector if kind == "npy" else " ".join(map(str, shown)).encode()
        members += [(f"{n}.png", swatch(colour, "PNG")), (f"{n}.{kind}", content)]
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    config = ZeroShot(
        data=str(tmp_path / "a.tar"),
        classnames=str(tmp_path / "names.txt"),
        templates="name",
        metric="map_11_point",
    )
    scored = evaluate_outcomes(encoder_of(colour_model, words), Evaluation(zero_shot={"several": config}))
    outcome, scores = scored.zero_shot["several"], scored.document["zero_shot"]["several"]
    assert isinstance(outcome, Labelled)
    assert outcome.labels.tolist() == [[c in shown for c in range(3)] for _, shown in labels]
    # Red: both red images come first, one of them right. Green: the green one comes first, then three ties.
    # Blue: the blue one is wrong, then come three ties, one of them right.
    expected = np.mean([1 / 2, (6 * 1 + 5 * 2 / 4) / 11, 1 / 4])
    assert scores["value"] == pytest.approx(expected)
    assert (scores["top1"], scores["per_class"], list(scores["intervals"])) == (None, None, ["map_11_point"])
    assert scores["interval"] is not None


@pytest.mark.parametrize(
    ("metric", "members", "message"),
    [
        ("map_11_point", {"npy": npy([1.0, 0.0])}, r"shape \(2,\), but there are 3 class names"),
        ("map_11_point", {"npy": b"PK"}, "not an array of numbers"),
        ("map_11_point", {"cls": b"0 7"}, "is 7, but there are 3 class names"),
        ("map_11_point", {}, "the label is missing"),
        ("top1", {"cls": b"0 1"}, "'0 1'; a .cls holds a class number"),
        ("top1", {"npy": npy([1.0, 0.0, 0.0])}, "the label is missing"),
        ("roc_auc", {"cls": b"0"}, "roc_auc needs two classes, but .* has 3"),
    ],
)
def test_labels_that_do_not_fit_the_metric_are_refused(
    tmp_path, colour_model, words, metric, members, message
):
    files = [("0.jpg", swatch("red")), *((f"0.{kind}", data) for kind, data in members.items())]
    write_tar(tmp_path / "a.tar", files)
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    config = ZeroShot(
        data=str(tmp_path / "a.tar"), classnames=str(tmp_path / "names.txt"), templates="name", metric=metric
    )
    with pytest.raises(UserError, match=message):
        evaluate_outcomes(encoder_of(colour_model, words), Evaluation(zero_shot={"a": config}))


@pytest.mark.parametrize("kind", ["shards", "folders"])
def test_subset_with_several_labels_per_image_is_refused(tmp_path, kind):
    data = (
        write_tar(tmp_path / "a.tar", [])
        if kind == "shards"
        else make_class_folders(tmp_path / "a", ["0", "1"])
    )
    config = ZeroShot(data=str(data), classnames="imagenet", metric="map_11_point", subset="imagenet_a")
    with pytest.raises(UserError, match="a subset and several labels"):
        class_set(config)
