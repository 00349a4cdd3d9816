"""Classification sets on disk: which folder is which class, subsets, and CLIP_benchmark's layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from support.evaluation_samples import COLOURS, encoder_of, npy, swatch, write_tar

from flipscale.config import Evaluation, ZeroShot
from flipscale.errors import UserError
from flipscale.evaluation.class_sets import check_class_set, class_set, rooted, set_templates
from flipscale.evaluation.evaluate import check_sets, evaluate_outcomes
from flipscale.evaluation.outcomes import Classified, Labelled
from flipscale.evaluation.shards import shards_of
from flipscale.evaluation.subsets import SUBSETS, imagenet_wnids, load_subset
from flipscale.evaluation.templates import load_class_names
from flipscale.third_party import import_open_clip

IMAGENET = load_class_names("imagenet")


def folders(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "0.jpg").write_bytes(b"x")
    return root


def found(data: Path, classnames: str, subset: str | None = None) -> dict[str, str]:
    """Class names by folder, of the samples that the set has."""
    chosen = class_set(ZeroShot(data=str(data), classnames=classnames, subset=subset))
    samples = {str(Path(s.name).parent): int(s.label or b"") for s in chosen.samples}
    assert sorted(samples.values()) == chosen.numbers
    return {folder: chosen.all_names[number] for folder, number in samples.items()}


# --- ImageNet's relatives


def test_wnid_folders_get_open_clips_names():
    """timm's order of ids is OpenCLIP's order of names, for some that leave no doubt."""
    known = {
        "n01440764": "tench",
        "n02123045": "tabby cat",
        "n03895866": "railroad car",
        "n07753592": "banana",
    }
    wnids = imagenet_wnids()
    assert len(wnids) == 1000
    assert sorted(wnids) == wnids
    names = import_open_clip().IMAGENET_CLASSNAMES
    for wnid, name in known.items():
        assert name in names[wnids.index(wnid)]


@pytest.mark.parametrize("subset", SUBSETS)
def test_robustness_sets_have_the_200_classes_of_their_folders(tmp_path, subset):
    """By wnid, whatever other classes lie there too, as in ImageNet's own validation folder."""
    numbers = load_subset(subset, 1000)
    wnids = imagenet_wnids()
    assert len(numbers) == 200
    root = folders(tmp_path / "all", [wnids[number] for number in numbers])
    expected = {wnids[number]: IMAGENET[number] for number in numbers}
    assert found(root, "imagenet", subset) == expected
    other = next(n for n in range(1000) if n not in numbers)
    folders(root, [wnids[other]])
    assert found(root, "imagenet", subset) == expected
    with pytest.raises(
        UserError, match=r"no class folder for class \d+ \(.* and 798 more; name the `subset`"
    ):
        found(root, "imagenet")
    (root / wnids[numbers[7]] / "0.jpg").unlink()
    with pytest.raises(UserError, match=f"{wnids[numbers[7]]} holds no images"):
        found(root, "imagenet", subset)
    (root / wnids[numbers[7]]).rmdir()
    with pytest.raises(UserError, match=rf"no class folder for class {numbers[7]} .* and 0 more"):
        found(root, "imagenet", subset)


def test_numbered_folders_are_sorted_as_numbers(tmp_path):
    """ImageNet-V2's: 0, 1, 10, 100, ... in the order of text."""
    names = [str(number) for number in range(1000)]
    root = folders(tmp_path / "v2", names)
    assert found(root, "imagenet") == dict(zip(names, IMAGENET, strict=True))
    own = tmp_path / "names.txt"
    own.write_text("".join(f"name {number}\n" for number in names))
    assert found(root, str(own)) == {number: f"name {number}" for number in names}
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("12\n3\n")
    assert found(root, "imagenet", str(numbers)) == {"3": IMAGENET[3], "12": IMAGENET[12]}


def test_a_wnid_of_no_imagenet_class_is_named(tmp_path):
    root = folders(tmp_path / "set", ["n01440764", "n99999999"])
    with pytest.raises(UserError, match="n99999999 is none of ImageNet's"):
        found(root, "imagenet", "imagenet_a")


def objectnet(root: Path) -> tuple[Path, Path]:
    """images, mappings: of four folders two are ImageNet classes."""
    mappings = root / "mappings"
    mappings.mkdir()
    labels = {
        "air_freshener": "Air freshener",
        "still_camera": "Still Camera",
        "banana": "Banana",
        "axe": "Axe",
    }
    shared = {"Still Camera": "Polaroid camera; reflex camera", "Banana": "banana"}
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))
    return folders(root / "images", list(labels)), mappings


def test_objectnet_keeps_the_classes_that_imagenet_has(tmp_path):
    images, mappings = objectnet(tmp_path)
    assert found(images, str(mappings)) == {"banana": "banana", "still_camera": "still camera"}
    (images / "banana" / "0.jpg").unlink()
    (images / "banana").rmdir()
    with pytest.raises(UserError, match=r"no class folder for class 0 \(banana\)"):
        found(images, str(mappings))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("objectnet_to_imagenet_1k.json", "{", "cannot be read"),
        ("objectnet_to_imagenet_1k.json", "[]", "holds no table"),
        ("objectnet_to_imagenet_1k.json", '{"Apple": "x"}', "names 'Apple', which"),
        ("folder_to_objectnet_label.json", None, "cannot be read .* the folder `mappings`"),
    ],
)
def test_bad_mappings_are_one_clear_sentence(tmp_path, file, content, message):
    images, mappings = objectnet(tmp_path)
    (mappings / file).unlink()
    if content is not None:
        (mappings / file).write_text(content)
    with pytest.raises(UserError, match=message):
        found(images, str(mappings))


# --- which folder is which class


NAMES = ("ape", "bee", "cat", "dog", "elk", "fox")


@pytest.fixture
def own_names(tmp_path) -> str:
    """A file of six names."""
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return str(tmp_path / "names.txt")


def listed(path: Path, numbers: list[int]) -> str:
    """A file of a subset."""
    path.write_text("\n".join(map(str, numbers)))
    return str(path)


def test_folders_named_by_numbers_keep_them_where_some_are_missing(tmp_path, own_names):
    root = folders(tmp_path / "set", ["0", "1", "3", "4", "5"])
    subset = listed(tmp_path / "subset.txt", [0, 1, 3, 4])
    assert found(root, own_names, subset) == {"0": "ape", "1": "bee", "3": "dog", "4": "elk"}
    with pytest.raises(UserError, match=r"no class folder for class 2 \(cat\) and 0 more; name the `subset`"):
        found(root, own_names)


def test_as_many_folders_as_names_go_by_their_order(tmp_path, own_names):
    root = folders(tmp_path / "set", [str(number) for number in range(1, 7)])
    subset = listed(tmp_path / "subset.txt", [0, 5])
    assert found(root, own_names) == dict(zip("123456", NAMES, strict=True))
    assert found(root, own_names, subset) == {"1": "ape", "6": "fox"}


@pytest.mark.parametrize(
    "made",
    [
        ["ape", "bee", "dog", "elk", "fox"],
        ["0", "1", "3", "4", "extra"],
        ["0", "1", "01", "3", "4"],
        [str(number) for number in range(2, 7)],
        ["ape", "bee", "cat", "dog", "elk", "fox", "lost+found"],
    ],
)
def test_folders_that_neither_number_nor_order_tells_apart_are_refused(tmp_path, own_names, made):
    """Also with a subset that has a folder at each of its places: they would be of other classes."""
    root = folders(tmp_path / "set", made)
    for subset in (None, listed(tmp_path / "subset.txt", [0, 1, 3, 4])):
        with pytest.raises(
            UserError, match=rf"has 6 class names, but .* has {len(made)} class folders; give"
        ):
            found(root, own_names, subset)


@pytest.mark.parametrize("wnids", [1000, 999])
def test_a_foreign_folder_among_imagenets_is_named(tmp_path, wnids):
    """Whether there are 1,001 folders or, with one of ImageNet's missing, as many as names."""
    root = folders(tmp_path / "set", [*imagenet_wnids()[:wnids], "lost+found"])
    for subset in (None, "imagenet_a"):
        with pytest.raises(UserError, match=r"lost\+found is none of ImageNet's 1,000 classes; remove it"):
            found(root, "imagenet", subset)


def test_imagenets_classes_counted_from_1_are_refused(tmp_path):
    root = folders(tmp_path / "set", [str(number) for number in range(1, 1001)])
    for subset in (None, "imagenet_a"):
        with pytest.raises(UserError, match=r"class folders 1 to 1000, and .* are 0 to 999, each once"):
            found(root, "imagenet", subset)


@pytest.mark.parametrize("classnames", ["imagenet", "folders"])
def test_a_directory_named_like_a_choice_does_not_take_its_place(tmp_path, monkeypatch, classnames):
    monkeypatch.chdir(folders(tmp_path / "work", ["imagenet", "folders"]))
    root = folders(tmp_path / "set", ["n01440764", "n02123045"])
    subset = listed(tmp_path / "subset.txt", [0, 281] if classnames == "imagenet" else [0, 1])
    assert list(found(root, classnames, subset)) == ["n01440764", "n02123045"]


# --- subsets


@pytest.mark.parametrize(
    ("content", "message"),
    [("1\nx\n", "'x' is not a class number"), ("1000\n", "'1000' is not"), ("1 1", "twice"), ("", "none at all")],
)
def test_a_bad_subset_is_one_clear_sentence(tmp_path, content, message):
    (tmp_path / "subset.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        load_subset(str(tmp_path / "subset.txt"), 1000)


def test_an_unknown_subset_names_the_known_ones():
    with pytest.raises(UserError, match=r"no file imagenet_b; .*imagenet_a or imagenet_r"):
        load_subset("imagenet_b", 1000)


# --- shards


def benchmark_directory(root: Path) -> Path:
    """As CLIP_benchmark's converter leaves it: six images of three colours, one of them mislabelled."""
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


def test_clip_benchmarks_directory_brings_its_names_templates_and_shards(tmp_path, colour_model, words):
    data = benchmark_directory(tmp_path / "wds" / "vtab-colours")
    chosen = ZeroShot(data="vtab-colours", classnames="own", templates="own")
    sets = Evaluation(root=str(tmp_path / "wds"), zero_shot={"colours": chosen}, retrieval={})
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


def test_a_subset_of_shards_leaves_the_others_out(tmp_path, colour_model, words):
    data = benchmark_directory(tmp_path / "colours")
    (tmp_path / "subset.txt").write_text("0\n2\n")
    chosen = ZeroShot(
        data=str(data),
        classnames="own",
        templates="own",
        subset=str(tmp_path / "subset.txt"),
        metric="roc_auc",
    )
    scored = evaluate_outcomes(encoder_of(colour_model, words), Evaluation(zero_shot={"two": chosen}))
    scores, outcome = scored.document["zero_shot"]["two"], scored.zero_shot["two"]
    assert isinstance(outcome, Classified)
    assert outcome.labels.tolist() == [0, 1, 0, 1]  # red, blue, red, and the red one called blue
    assert (scores["classes"], scores["skipped"], scores["per_class"]) == (2, 0, [1.0, 0.5])
    # Blue shows 1 in the margin, red -1: of the 4 pairs 2 are right and 2 are ties.
    assert outcome.margins is not None
    assert scores["value"] == 0.75 == roc_auc_score(outcome.labels, outcome.margins)


@pytest.mark.parametrize("kind", ["npy", "cls"])
def test_several_labels_an_image(tmp_path, colour_model, words, kind):
    labels = [("red", [0]), ("green", [1, 2]), ("blue", []), ("red", [1])]
    members = []
    for n, (colour, shown) in enumerate(labels):
        vector = npy([float(c in shown) for c in range(3)])
        content = vector if kind == "npy" else " ".join(map(str, shown)).encode()
        members += [(f"{n}.png", swatch(colour, "PNG")), (f"{n}.{kind}", content)]
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    chosen = ZeroShot(
        data=str(tmp_path / "a.tar"),
        classnames=str(tmp_path / "names.txt"),
        templates="name",
        metric="map_11_point",
    )
    scored = evaluate_outcomes(encoder_of(colour_model, words), Evaluation(zero_shot={"several": chosen}))
    outcome, scores = scored.zero_shot["several"], scored.document["zero_shot"]["several"]
    assert isinstance(outcome, Labelled)
    assert outcome.labels.tolist() == [[c in shown for c in range(3)] for _, shown in labels]
    # Red: both red images first, one right. Green: the green one first, then three ties. Blue: the blue one
    # is wrong, then three ties of which one is right.
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
def test_labels_that_do_not_fit_are_refused(tmp_path, colour_model, words, metric, members, message):
    files = [("0.jpg", swatch("red")), *((f"0.{kind}", data) for kind, data in members.items())]
    write_tar(tmp_path / "a.tar", files)
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    chosen = ZeroShot(
        data=str(tmp_path / "a.tar"), classnames=str(tmp_path / "names.txt"), templates="name", metric=metric
    )
    with pytest.raises(UserError, match=message):
        evaluate_outcomes(encoder_of(colour_model, words), Evaluation(zero_shot={"a": chosen}))


def test_a_folder_without_images_or_folders_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no sub-folders"):
        found(tmp_path / "empty", "folders")


@pytest.mark.parametrize("kind", ["shards", "folders"])
def test_a_subset_of_several_labels_is_refused(tmp_path, kind):
    data = write_tar(tmp_path / "a.tar", []) if kind == "shards" else folders(tmp_path / "a", ["0", "1"])
    chosen = ZeroShot(data=str(data), classnames="imagenet", metric="map_11_point", subset="imagenet_a")
    with pytest.raises(UserError, match="a subset and several labels"):
        class_set(chosen)
